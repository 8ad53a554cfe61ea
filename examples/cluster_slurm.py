"""A whole volume on the GPUs of a SLURM cluster.

    pip install 'napari-seamless[cluster]' dask-jobqueue
    python examples/cluster_slurm.py IN.zarr NET.pt OUT.zarr

Run it on a machine that may submit jobs: the login node, or in a job of its own. All paths must be
on a disk that every node sees. What it needs of the partition is at the top.

If it is cut off, run it again: it goes on with what is done.
"""

import sys

from dask_jobqueue import SLURMCluster
from distributed import Client

import napari_seamless as ns
from napari_seamless.cluster import ClusterRun
from napari_seamless.draining import drain

JOBS = 8
PARTITION, HOURS = "gpu", 12
GPU = "--gres=gpu:1"

CONFIG = ns.InferenceConfig(patch_size=(32, 128, 128), overlap=0.5, batch_size=4, device="cuda")


def main(source: str, checkpoint: str, output: str) -> None:
    """Run the network over the volume on as many jobs as start."""
    cluster = SLURMCluster(
        queue=PARTITION,
        walltime=f"{HOURS}:00:00",
        cores=1,  # one thread per worker: a worker runs one network at a time
        processes=1,
        job_cpu=4,  # and cores for reading and decompressing beside it
        memory="32GB",
        job_extra_directives=[GPU],
    )
    with cluster, Client(cluster) as client:
        cluster.scale(jobs=JOBS)
        client.wait_for_workers(1)  # the queue may take a while; more workers join as they start
        with ClusterRun(source, checkpoint, CONFIG, output, client, resume=True) as run:
            drain(run)
            print(run.status, *run.paths)


if __name__ == "__main__":
    main(*sys.argv[1:])
