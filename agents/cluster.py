"""Where Ray runs: a cluster of several nodes on this machine, or one that exists already."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from imagine.extras import extra
from imagine.types import ImagineError

NODE_MEMORY = 128 * 2**20  # bytes of object store
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@contextmanager
def local_cluster(nodes: int, cpus_per_node: int) -> Iterator[str]:
    """A Ray cluster of nodes on this machine, connected to while the body runs; nothing is left behind.

    Each node gives away ``cpus_per_node`` CPUs, whatever the machine has; what does not fit goes to the next node.

    Yields:
        The cluster's address.

    Raises:
        ImagineError: this process is connected to a cluster already, or no nodes are asked for.
    """
    with extra("rl"):
        import ray
        from ray.cluster_utils import Cluster

    if nodes < 1 or cpus_per_node < 1:
        raise ImagineError(f"asked for {nodes} nodes of {cpus_per_node} CPUs, expected 1 or more of each.")
    if ray.is_initialized():
        raise ImagineError("this process is connected to a Ray cluster already; call ray.shutdown() first.")
    with (
        tempfile.TemporaryDirectory(prefix="imagine-", ignore_cleanup_errors=True) as folder,
        _environment(RAY_TMPDIR=folder, RAY_USAGE_STATS_ENABLED="0"),  # its sockets' paths must be short
    ):
        cluster = Cluster()
        try:
            for _ in range(nodes):
                cluster.add_node(num_cpus=cpus_per_node, object_store_memory=NODE_MEMORY, include_dashboard=False)
            with connected(cluster.address):
                yield cluster.address
        finally:
            cluster.shutdown()


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connected to a cluster while the body runs; processes started there use one thread each.

    Raises:
        ImagineError: no cluster answers there.
    """
    with extra("rl"):
        import ray

    environment = {"env_vars": ONE_THREAD}
    try:
        ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ImagineError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def errors_as_ours() -> Iterator[None]:
    """What our side raised in a runner comes out as it was, other errors of Ray with a sentence."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ImagineError):
            raise cause from None
        raise ImagineError(f"a runner failed, expected none to: {cause or error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """RLlib says nothing; what matters is raised."""
    log = logging.getLogger("ray.rllib")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """These environment variables while the body runs."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
