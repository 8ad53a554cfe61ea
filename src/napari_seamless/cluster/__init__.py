"""A run on several processes or machines, with Dask.

    driver   cuts the patch grid into blocks, hands out tasks, reads finished chunks for who looks
    block    a task: runs its patches, writes the chunks that it alone reaches, leaves its sums of
             the others
    merge    a task: adds up what blocks left of a chunk, in the order of the blocks; writes it

What tasks need and leave is in the folder beside the output, so that nothing is lost with a worker,
or with the driver: all see the same disk.
"""

from napari_seamless.cluster.connection import connect, local_cluster
from napari_seamless.cluster.run import ClusterRun

__all__ = ["ClusterRun", "connect", "local_cluster"]
