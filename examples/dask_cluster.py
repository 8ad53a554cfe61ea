"""A volume on several processes: a Dask cluster on this machine.

    python examples/dask_cluster.py

needs ``pip install 'napari-seamless[cluster]'``. Any other cluster that Dask can start works in the
same way, see cluster_slurm.py; then the files must be on a disk that all its workers see.
"""

import tempfile
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster

import napari_seamless as ns
from napari_seamless.cluster import ClusterRun
from napari_seamless.demo import CHECKPOINT
from napari_seamless.demo.volume import demo_volume
from napari_seamless.draining import drain

CONFIG = ns.InferenceConfig(
    patch_size=(8, 48, 48), overlap=0.25, activation="sigmoid", device="cpu"
)


def main(folder: Path) -> None:
    """Predict a volume with two workers, and once more without."""
    raw, _ = demo_volume((8, 84, 84))
    np.save(folder / "volume.npy", raw)
    source, output = folder / "volume.npy", folder / "prediction.zarr"

    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with (
        cluster,
        Client(cluster) as client,
        ClusterRun(source, CHECKPOINT, CONFIG, output, client) as run,
    ):
        drain(run)
        print(run.status, run.done, "of", run.total, "patches")
        print(len(client.nthreads()), "workers")
        together = run.results()[0]

    alone = ns.predict(source, CHECKPOINT, CONFIG, progress=False).array
    np.testing.assert_allclose(together, alone, atol=1e-5)
    print("the same as without a cluster")


# Workers are processes of their own, which import this file: they must not start others.
if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
