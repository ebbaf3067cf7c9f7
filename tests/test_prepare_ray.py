"""Prepared on a real Ray cluster that loses workers and a node, the store is that of this process to the byte."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from preparing import PAUSE, Bench, Command, make_texts, whole_content_of, write_jsonl
from xlstm_jax.prepare import PrepareError, prepare, ray_engine


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one node; Ray's own tool adds nodes to it, and takes them away."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


SETTINGS = {"task_bytes": 15_000, "shard_bytes": 60_000, "splits": {"train": 0.9, "validation": 0.1}}


def let_two_workers_die(folder, monkeypatch):
    """Each at a moment of some work that is not its first, or when that is done and its result is not told yet."""
    seconds = np.random.default_rng(0).uniform(0, 0.02, 2)
    perform = ray_engine._perform_on_node

    def perform_on_node(job, work):
        own = folder / f"worker-{os.getpid()}"
        for number in range(2) if own.exists() else ():
            with contextlib.suppress(FileExistsError):
                (folder / f"dead-{number}").touch(exist_ok=False)
                threading.Timer(seconds[number], os.kill, (os.getpid(), signal.SIGKILL)).start()
                perform(job, work)
                threading.Event().wait()
        own.touch()
        return perform(job, work)

    monkeypatch.setattr(ray_engine, "_perform_on_node", perform_on_node)


def let_three_workers_meet(folder, monkeypatch):
    """Nothing is done before there are three."""
    perform = ray_engine._perform_on_node

    def perform_on_node(job, work):
        (folder / f"worker-{os.getpid()}").touch()
        give_up = time.monotonic() + 200
        while len(list(folder.glob("worker-*"))) < 3:
            assert time.monotonic() < give_up, "no third worker came"
            time.sleep(0.01)
        return perform(job, work)

    monkeypatch.setattr(ray_engine, "_perform_on_node", perform_on_node)


def test_a_cluster_that_loses_workers_writes_the_same_bytes(cluster, bench, tmp_path, monkeypatch):
    corpus = write_jsonl(bench.folder / "a.jsonl", make_texts(1200, longest=200))
    expected = whole_content_of(bench.prepare(corpus, **SETTINGS))
    let_two_workers_die(tmp_path, monkeypatch)
    seen = set()
    config = bench.config(corpus, engine="ray", workers=None, **SETTINGS)
    prepare(config, watch=lambda progress: seen.update(progress.workers))
    assert (tmp_path / "dead-1").exists()
    assert len(seen) >= 2
    assert whole_content_of(config.output) == expected


def test_a_cluster_that_loses_a_node_writes_the_same_bytes(cluster, bench, tmp_path, monkeypatch):
    corpus = write_jsonl(bench.folder / "a.jsonl", make_texts(1200, longest=200))
    expected = whole_content_of(bench.prepare(corpus, **SETTINGS))
    node = cluster.add_node(num_cpus=2)
    let_three_workers_meet(tmp_path, monkeypatch)
    lost = []

    def lose_the_node(progress):
        # Two workers have a core at home; a third is on the other node.
        if not lost and len(progress.workers) > 2:
            lost.append(node)
            cluster.remove_node(node, allow_graceful=False)

    config = bench.config(corpus, engine="ray", workers=None, **SETTINGS)
    prepare(config, watch=lose_the_node)
    assert lost
    assert whole_content_of(config.output) == expected


def test_a_cluster_of_more_cores_works_on_no_more_than_were_asked_for(cluster, bench, monkeypatch):
    corpus = write_jsonl(bench.folder / "a.jsonl", make_texts(200))
    handed_out = []
    wait = ray.wait

    def counted(references, **options):
        handed_out.append(len(references))
        return wait(references, **options)

    monkeypatch.setattr(ray, "wait", counted)
    bench.prepare(corpus, engine="ray", workers=1)
    assert max(handed_out) == 1
    bench.prepare(corpus, engine="ray", workers=None)
    # Two for each core; those of a node that was lost count for a while.
    assert max(handed_out) in (4, 8)


def test_a_file_system_that_does_not_see_at_once_what_a_node_has_written_is_waited_for(cluster, bench, monkeypatch):
    corpus = write_jsonl(bench.folder / "a.jsonl", make_texts(100))
    expected = whole_content_of(bench.prepare(corpus))
    is_file, scandir = Path.is_file, os.scandir
    missed = set()

    def remembered(path):
        """A name that was looked for in vain is not there, as on NFS, until its folder is read."""
        if path in missed:
            return False
        if is_file(path):
            return True
        if path.suffix == ".json" and path.parent.name in ("parts", "shards"):
            missed.add(path)
        return False

    def read_folder(folder):
        missed.difference_update([path for path in missed if path.parent == folder])
        return scandir(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", remembered)
        patch.setattr(os, "scandir", read_folder)
        store = bench.prepare(corpus, engine="ray", workers=None)
    assert whole_content_of(store) == expected
    monkeypatch.setattr("xlstm_jax.prepare.ray_engine._SEEN_WITHIN_S", 0.1)
    monkeypatch.setattr(Path, "is_file", lambda path: path.parent.name != "parts" and is_file(path))
    with pytest.raises(PrepareError, match=r"not to be seen here after 0 s; .* all nodes share"):
        bench.prepare(corpus, engine="ray", workers=None)


@pytest.mark.slow
def test_a_command_that_is_killed_while_a_cluster_works_for_it_goes_on_with_the_same_bytes(cluster, bench):
    corpus = write_jsonl(bench.folder / "a.jsonl", make_texts(1500, longest=80))
    sizes = {"task_bytes": 10 << 10, "shard_bytes": 50 << 10}
    expected = whole_content_of(bench.prepare(corpus, **sizes))
    options = ["--engine", "ray", "--address", cluster.address]
    chance = np.random.default_rng(0)
    command = Command(bench.folder, corpus, *options, before=PAUSE.format(tasks=chance.integers(1, 12)))
    assert command.stop(signal.SIGKILL, chance.uniform(0, 0.1))[0] == -signal.SIGKILL
    store = bench.folder / "by-command"
    assert list((store / ".unfinished" / "parts").glob("*.json"))
    # Where the work goes on is no matter.
    bench.prepare(corpus, engine="ray", workers=None, output=store, **sizes)
    assert whole_content_of(store) == expected


def test_bad_input_on_a_cluster_is_the_same_error_and_the_work_goes_on_afterwards(cluster, bench):
    good = make_texts(50)
    path = write_jsonl(bench.folder / "a.jsonl", [*good[:30], b"{", *good[30:]])
    with pytest.raises(PrepareError, match=r"a\.jsonl, line 31: The line is no valid JSON"):
        bench.prepare(path, engine="ray", workers=None)
    store = bench.prepare(path, engine="ray", workers=None, on_error="skip")
    assert bench.texts_of(store) == good
