"""The processes that work: on this machine, or of a Dask cluster that is there already."""

import logging
import pkgutil
import re
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster, Status

from napari_seamless import __version__
from napari_seamless.engine.errors import ConfigError, one_line

SCHEDULER_SECONDS = 10
"""How long to wait for an answer of a scheduler."""

WORKER_SECONDS = 60
"""How long to wait for the first worker."""

_CALM = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""Run in each worker: Ctrl-C goes to all processes of a terminal, and this one ends the others."""

INSTALL = "pip install napari-seamless[cluster]"


@contextmanager
def local_cluster(workers: int) -> Iterator[LocalCluster]:
    """Start worker processes on this machine; they end with the context.

    Parameters
    ----------
    workers : int
        How many. Each uses one core, and one GPU where there are some.

    Raises
    ------
    ConfigError
        If `workers` is not positive, or they cannot be started.
    """
    if workers < 1:
        raise ConfigError(f"workers {workers} cannot run anything; give 1 or more")
    try:
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            memory_limit=0,  # blocks are bounded; the input may be mapped into memory
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # else it takes a known port
            silence_logs=logging.CRITICAL,
            preload=_CALM,
        )
    except (OSError, RuntimeError, TimeoutError) as error:
        raise ConfigError(
            f"{workers} workers could not be started: {one_line(error)}; try fewer"
        ) from error
    try:
        yield cluster
    finally:
        try:
            cluster.close()
        except KeyError:  # distributed looks for a worker that died; all is closed by then
            cluster.status = Status.closed


def connect(address: str) -> Client:
    """Return a client of a scheduler.

    Parameters
    ----------
    address : str
        As the scheduler says it, "tcp://10.0.0.1:8786".

    Returns
    -------
    Client
        The caller closes it.

    Raises
    ------
    ConfigError
        If there is no scheduler.
    """
    if not re.fullmatch(r"(\w+://)?[^\s/]+:\d+/?", address):
        raise ConfigError(
            f"scheduler {address!r} is no address; give one such as tcp://10.0.0.1:8786"
        )
    try:
        return Client(address, timeout=SCHEDULER_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"no scheduler answers at {address!r} within {SCHEDULER_SECONDS} seconds; start one "
            "with 'dask scheduler' and give the address that it prints, such as "
            "tcp://10.0.0.1:8786"
        ) from error


@contextmanager
def client_of(cluster: "int | str | Client") -> Iterator[Client]:
    """Give a client of a cluster; what is started for it is closed in the end.

    Parameters
    ----------
    cluster : int, str or Client
        So many workers on this machine, the address of a scheduler, or a client of one, which is
        left open.
    """
    if isinstance(cluster, Client):
        check_workers(cluster)
        yield cluster
        return
    with quiet():
        if isinstance(cluster, str):
            with connect(cluster) as client:
                check_workers(client)
                yield client
            return
        with local_cluster(cluster) as local, Client(local, set_as_default=False) as client:
            check_workers(client)
            yield client


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what distributed says of connections that end off the screen: errors are raised."""
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(logging.CRITICAL)
    settings = {
        "distributed.admin.large-graph-warning-threshold": "1TB",  # a network may be large
        "distributed.deploy.lost-worker-timeout": "60s",  # a busy machine is slow to start another
    }
    with dask.config.set(settings):
        try:
            yield
        finally:
            log.setLevel(before)


def check_workers(client: Client) -> None:
    """Wait for a worker, and see that all have this version of the package.

    Raises
    ------
    ConfigError
        If there is no worker, none answers, or one lacks the package or has another version.
    """
    address = client.scheduler.address if client.scheduler is not None else "the scheduler"
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError as error:
        raise ConfigError(
            f"the scheduler at {address} has had no worker for {WORKER_SECONDS} seconds; start "
            f"some with 'dask worker {address}'"
        ) from error
    found = client.run(pkgutil.resolve_name, "napari_seamless:__version__", on_error="return")
    # A worker that ends while it is asked is not one to be mended: Dask does without it.
    answers = {each: said for each, said in found.items() if not isinstance(said, OSError)}
    if not answers:
        worker, reason = next(iter(found.items()))
        raise ConfigError(
            f"no worker of the scheduler at {address} answers, such as {worker} "
            f"({one_line(reason)}); see that they run and can be reached from the scheduler"
        )
    for worker, version in answers.items():
        if isinstance(version, BaseException):
            raise ConfigError(
                f"worker {worker} has no napari-seamless ({one_line(version)}); install it there: "
                f"{INSTALL}"
            )
        if version != __version__:
            raise ConfigError(
                f"worker {worker} has napari-seamless {version}, this process {__version__}; "
                "install the same everywhere"
            )
