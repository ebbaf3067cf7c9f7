"""Stopped at any moment, the same command goes on, and the store is the same to the byte."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from preparing import (
    PAUSE,
    Bench,
    Command,
    content_of,
    interrupt_after,
    make_texts,
    save_tokenizer,
    whole_content_of,
    write_jsonl,
)
from xlstm_jax.dataset.sources import TokenStore
from xlstm_jax.dataset.threads import usable_cores
from xlstm_jax.prepare import PrepareError, prepare, read_manifest
from xlstm_jax.prepare.course import Course
from xlstm_jax.prepare.plan import ShardPlan
from xlstm_jax.prepare.readers import read_texts
from xlstm_jax.prepare.storage import resource
from xlstm_jax.prepare.tasks import Piece
from xlstm_jax.prepare.work import perform
from xlstm_jax.prepare.workspace import Workspace

TEXTS = make_texts(150)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def corpus(bench):
    return write_jsonl(bench.folder / "a.jsonl", TEXTS)


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """Which file each name stands for."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_an_interruption_after_every_task_leaves_only_whole_files_and_loses_no_work(bench, corpus):
    expected = whole_content_of(bench.prepare(corpus, splits={"a": 0.7, "b": 0.3}, drop_duplicates=False))
    config = bench.config(corpus, splits={"a": 0.7, "b": 0.3})
    before = {}
    for _ in range(1000):
        try:
            prepare(config, watch=interrupt_after(1))
            break
        except KeyboardInterrupt:
            now = state_of(config.output)
            assert not [path for path in now if path.name.endswith(".part")]
            # What was finished is what it was, or is not needed any more.
            markers_and_shards = {path for path in before if path.suffix == ".json" or path.name.startswith("shard-")}
            assert {path: now.get(path) for path in markers_and_shards} == {
                path: before[path] for path in markers_and_shards
            }
            before = now
    assert len(before) > 20
    assert whole_content_of(config.output) == expected


def test_an_interruption_before_repeats_are_removed_is_no_matter(bench, corpus):
    expected = whole_content_of(bench.prepare(corpus, corpus, drop_duplicates=True))
    config = bench.config(corpus, corpus, drop_duplicates=True)
    for tasks in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            prepare(config, watch=interrupt_after(tasks))
    prepare(config)
    assert whole_content_of(config.output) == expected


def test_an_unfinished_store_is_not_opened_nor_prepared_from(bench, corpus):
    config = bench.config(corpus, splits={"train": 0.9, "rest": 0.1})
    with pytest.raises(KeyboardInterrupt):
        prepare(config, watch=interrupt_after(6))
    assert list((config.output / "train").glob("shard-*.idx"))
    for folder in (config.output, config.output / "train"):
        with pytest.raises(ValueError, match="not finished"):
            TokenStore(folder)
        with pytest.raises(PrepareError, match="unfinished"):
            bench.prepare(folder)


@pytest.mark.parametrize("spoil", [lambda content: content[:0], lambda content: content[:-1]])
@pytest.mark.parametrize("kind", ["json", "all.bin", "all.idx", "all.hashes"])
def test_what_a_power_failure_took_of_the_unfinished_is_done_again(bench, corpus, kind, spoil):
    expected = whole_content_of(bench.prepare(corpus, drop_duplicates=True))
    config = bench.config(corpus, drop_duplicates=True)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, watch=interrupt_after(6))
    part = config.output / ".unfinished" / "parts" / f"00000003.{kind}"
    part.write_bytes(spoil(part.read_bytes()))
    prepare(config)
    assert whole_content_of(config.output) == expected


def test_what_was_consumed_by_finished_shards_is_not_kept(bench, corpus):
    config = bench.config(corpus)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, watch=interrupt_after(6))
    parts = sorted((config.output / ".unfinished" / "parts").glob("*.bin"))
    shards = sorted(config.output.glob("shard-*.bin"))
    assert shards
    assert parts[0].name > "00000001"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "options", "moments"),
    [
        (
            {},
            [],
            [(signal.SIGKILL, 1, 20), (signal.SIGINT, 1, 20), (signal.SIGTERM, 1, 20)],
        ),
        (
            {"splits": {"a": 0.5, "b": 0.5}, "drop_duplicates": True, "output_format": "array_record"},
            ["--split", "a=0.5,b=0.5", "--drop-duplicates", "--format", "arrayrecord"],
            # While the input is read, and while shards are written of what is left when repeats are found.
            [(signal.SIGKILL, 1, 30), (signal.SIGKILL, 35, 45)],
        ),
    ],
)
def test_killed_at_random_moments_the_command_ends_with_the_same_bytes(tmp_path, settings, options, moments):
    bench = Bench(tmp_path)
    texts = make_texts(4000, longest=80)
    corpus = write_jsonl(tmp_path / "a.jsonl", texts + texts[:500])
    expected = whole_content_of(bench.prepare(corpus, task_bytes=10 << 10, shard_bytes=50 << 10, **settings))
    chance = np.random.default_rng(0)
    for number, first, last in moments:
        command = Command(tmp_path, corpus, *options, before=PAUSE.format(tasks=chance.integers(first, last)))
        code, said = command.stop(number, chance.uniform(0, 0.1))
        assert code == (130 if number == signal.SIGINT else -number)
        assert ("goes on from here" in said) == (number == signal.SIGINT)
    assert Command(tmp_path, corpus, *options).finish()[0] == 0
    assert whole_content_of(tmp_path / "by-command") == expected


@pytest.mark.parametrize("output_format", ["token_store", "array_record"])
def test_a_full_disk_is_an_error_and_no_loss(tmp_path, output_format):
    save_tokenizer(tmp_path / "tokenizer.json")
    corpus = write_jsonl(tmp_path / "a.jsonl", make_texts(600, longest=80))
    # No file may grow beyond this: as with a full disk, a write fails somewhere in the middle.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); "
    options = ["--format", {"array_record": "arrayrecord"}.get(output_format, output_format)]
    code, said = Command(tmp_path, corpus, *options, before=limit).finish()
    assert code == 1
    assert re.search(r"error: .*File too large.*\. Make room in the output folder; then the same command goes on", said)
    assert "Traceback" not in said
    left = state_of(tmp_path / "by-command")
    assert not [path for path in left if path.name.startswith("shard-") or path.name.endswith(".part")]
    assert Command(tmp_path, corpus, *options).finish()[0] == 0
    bench = Bench(tmp_path)
    expected = bench.prepare(corpus, task_bytes=10 << 10, shard_bytes=50 << 10, output_format=output_format)
    assert whole_content_of(tmp_path / "by-command") == whole_content_of(expected)


def test_a_script_without_a_guard_may_call_prepare(bench, corpus):
    config = bench.config(corpus, workers=1)
    script = bench.folder / "script.py"
    script.write_text(
        "from xlstm_jax.prepare import PrepareConfig, prepare\n"
        f"prepare(PrepareConfig(inputs={config.inputs}, output={str(config.output)!r}, workers=1,\n"
        f"    tokenizer={config.tokenizer!r}, task_bytes=2000, shard_bytes=5000))\n"
    )
    subprocess.run([sys.executable, script], check=True, timeout=200)
    assert whole_content_of(config.output) == whole_content_of(bench.prepare(corpus))


def test_workers_that_are_killed_now_and_then_are_replaced(bench, corpus):
    """However often: no piece of work is lost more than once."""
    killed = []

    def kill_one(progress):
        if progress.workers.total() > 10 * len(killed) and len(killed) < 2:
            killed.append(int(next(reversed(progress.workers)).rpartition(":")[2]))
            os.kill(killed[-1], signal.SIGKILL)

    config = bench.config(corpus, workers=1, task_bytes=500, retries=1)
    prepare(config, watch=kill_one)
    assert len(set(killed)) == 2
    assert whole_content_of(config.output) == whole_content_of(bench.prepare(corpus, task_bytes=500))


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])])
@pytest.mark.parametrize("kind", ["bin", "idx"])
@pytest.mark.parametrize("during", ["interruption", "work"])
def test_a_store_with_a_damaged_shard_does_not_go_on(bench, corpus, kind, spoil, during):
    config = bench.config(corpus)
    shard = config.output / f"shard-00000.{kind}"

    def watch(progress):
        if during == "work" and not spoilt and progress.workers.total() >= 8:
            spoilt.append(spoil(shard))

    spoilt = []
    if during == "interruption":
        with pytest.raises(KeyboardInterrupt):
            prepare(config, watch=interrupt_after(8))
        spoil(shard)
    with pytest.raises(PrepareError, match=rf"shard-00000\.{kind} was finished with .* and (is gone|has .* bytes)"):
        prepare(config, watch=watch)
    assert not (config.output / "manifest.json").exists()


@pytest.mark.parametrize("part", [0, 2])
def test_what_a_power_failure_took_of_a_marker_whose_shard_is_finished_is_done_again(bench, corpus, part):
    expected = whole_content_of(bench.prepare(corpus))
    config = bench.config(corpus)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, watch=interrupt_after(12))
    parts = config.output / ".unfinished" / "parts"
    assert [path.name for path in parts.glob(f"{part:08d}.*")] == [f"{part:08d}.json"]
    (parts / f"{part:08d}.json").write_bytes(b"")
    prepare(config)
    assert whole_content_of(config.output) == expected


def test_all_that_work_rests_on_is_on_the_disk_before_it_has_its_name(bench, corpus, monkeypatch):
    """After a power failure a file may be empty that was renamed before it was synced, or lack its name."""
    events = []

    def recorded(name, function, described):
        def call(*given):
            events.append((name, *described(*given)))
            return function(*given)

        return call

    def renamed(old, new):
        return os.fspath(new), Path(old).stat().st_ino

    monkeypatch.setattr(os, "fsync", recorded("fsync", os.fsync, lambda given: (os.fstat(given).st_ino,)))
    monkeypatch.setattr(os, "replace", recorded("name", os.replace, renamed))
    monkeypatch.setattr(Path, "replace", recorded("name", Path.replace, renamed))
    monkeypatch.setattr(Workspace, "end", lambda _: None)
    store = bench.prepare(corpus, corpus, drop_duplicates=True)
    state = store / ".unfinished"
    shards = sorted(store.glob("shard-*.*"))
    markers = sorted((state / "shards").iterdir())
    assert len(shards) == 2 * len(markers) > 4
    for path in (
        state / "settings.json",
        state / "inputs.jsonl",
        state / "all.keep",
        *markers,
        store / "manifest.json",
    ):
        place = events.index(("name", str(path), path.stat().st_ino))
        assert ("fsync", path.stat().st_ino) in events[:place], path
        assert ("fsync", path.parent.stat().st_ino) in events[place:], path
    for path in shards:
        # Under its name already, and before its marker.
        place = events.index(("fsync", path.stat().st_ino))
        marker = state / "shards" / f"all-{path.stem.removeprefix('shard-')}.json"
        assert place < events.index(("name", str(marker), marker.stat().st_ino))
    assert {("fsync", folder.stat().st_ino) for folder in (store.parent, store, state)} <= set(events)


def test_settings_that_are_lost_take_what_was_made_by_them_along(bench, corpus):
    config = bench.config(corpus)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, watch=interrupt_after(12))
    (config.output / ".unfinished" / "settings.json").unlink()
    store = bench.prepare(corpus, output=config.output, shard_bytes=6000, bos_token=3)
    assert content_of(store) == content_of(bench.prepare(corpus, shard_bytes=6000, bos_token=3))


def test_a_result_that_is_lost_costs_no_work_and_no_parts(bench, corpus, monkeypatch):
    expected = whole_content_of(bench.prepare(corpus))
    config = bench.config(corpus)

    def losing(job, worklist):
        """Each result is lost once its marker is there; that of a shard comes while that of the next is lost."""
        held = []
        for work in filter(None, worklist):
            done = perform(job, work)
            if isinstance(work, ShardPlan):
                if not held:
                    held.append((work, done))
                    continue
                yield held.pop()
                assert all(Path(run.path).is_file() for run in work.runs)
            before = state_of(config.output)
            assert perform(job, work) == done
            assert state_of(config.output) == before
            yield work, done
        yield from held

    monkeypatch.setattr("xlstm_jax.prepare.preparation.run", losing)
    prepare(config)
    assert whole_content_of(config.output) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_there_are_as_many_workers_as_cores_that_this_process_may_use(bench, corpus):
    """A batch system gives a job some of the cores of a machine."""
    mine = os.sched_getaffinity(0)
    seen = set()
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert usable_cores() == 1
        prepare(bench.config(corpus, workers=None), watch=lambda progress: seen.update(progress.workers))
    finally:
        os.sched_setaffinity(0, mine)
    assert len(seen) == 1


def test_no_more_is_handed_out_than_workers_have_at_hand(bench, corpus, monkeypatch):
    """However large the input, what waits for a worker takes no more memory, and an interruption costs no more."""
    given, done, under_way = [], [], []
    worklist, finished = Course.worklist, Course.finished

    def counted_list(course):
        for work in worklist(course):
            if work is not None:
                given.append(work)
                under_way.append(len(given) - len(done))
            yield work

    def counted_end(course, work, result):
        done.append(work)
        finished(course, work, result)

    monkeypatch.setattr(Course, "worklist", counted_list)
    monkeypatch.setattr(Course, "finished", counted_end)
    bench.prepare(corpus, workers=2)
    assert sorted(map(repr, given)) == sorted(map(repr, done))
    assert max(under_way) == 4 < len(given)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_the_memory_of_a_worker_does_not_grow_with_the_input(bench, suffix):
    """A compressed file is one task, and a plain one is many."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<|endoftext|>": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<|endoftext|>"])
    words.save(str(bench.folder / "words.json"))
    lines = [b'{"text": "%s"}' % (b"w" * 5000) for _ in range(200)]
    peaks = []
    for megabytes in (8, 80):
        path = write_jsonl(bench.folder / f"{megabytes}.{suffix}", lines * megabytes)
        config = bench.config(
            path, workers=1, tokenizer=str(bench.folder / "words.json"), task_bytes=1 << 18, shard_bytes=1 << 20
        )
        peak = {}

        def measure(progress, peak=peak):
            for worker in progress.workers:
                pid = worker.rpartition(":")[2]
                peak[pid] = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024

        manifest = prepare(config, watch=measure)
        assert (manifest.documents, manifest.text_bytes) == (200 * megabytes, megabytes * 200 * 5000)
        peaks.append(max(peak.values()))
    assert peaks[1] < peaks[0] + 16, f"{peaks[0]:.0f} MB for 8 MB of input, {peaks[1]:.0f} MB for 80 MB"


def test_an_interrupt_does_not_stop_workers_that_start(bench, corpus):
    blocked = set()

    def look(progress):
        for worker in progress.workers:
            status = Path(f"/proc/{worker.rpartition(':')[2]}/status").read_text()
            blocked.add(int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16) >> signal.SIGINT - 1 & 1)

    prepare(bench.config(corpus, workers=1), watch=look)
    assert blocked == {1}
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_workers_that_die_again_and_again_are_an_error(bench, corpus):
    def kill_all(progress):
        for worker in progress.workers:
            try:
                os.kill(int(worker.rpartition(":")[2]), signal.SIGKILL)
            except ProcessLookupError:
                continue

    config = bench.config(corpus, workers=1, retries=1, task_bytes=500)
    with pytest.raises(PrepareError, match="died, 2 times at the same work"):
        prepare(config, watch=kill_all)


def test_a_finished_store_is_left_as_it_is(bench, corpus):
    config = bench.config(corpus)
    prepare(config)
    before = state_of(config.output)
    assert prepare(config) == read_manifest(config.output)
    assert state_of(config.output) == before


@pytest.mark.parametrize("splits", [{}, {"train": 0.5, "val": 0.5}])
def test_a_finished_store_that_has_lost_a_file_is_not_taken_for_finished(bench, corpus, splits):
    config = bench.config(corpus, splits=splits)
    prepare(config)
    (config.output / ("val" if splits else "") / "shard-00000.bin").unlink()
    with pytest.raises(PrepareError, match=r"shard-00000\.bin was finished with .* bytes, and is gone"):
        prepare(config)


def change_the_input(config):
    path = Path(config.inputs[0])
    path.write_text(path.read_text().replace("w1", "w2"))


def change_the_tokenizer(config):
    path = Path(config.tokenizer)
    path.write_text(path.read_text().replace('"<|endoftext|>"', '"<eos>"'))


@pytest.mark.parametrize("tasks", [4, None])
@pytest.mark.parametrize(
    ("change", "said"), [(change_the_input, "changed|input files"), (change_the_tokenizer, "tokenizer_fingerprint")]
)
def test_a_changed_input_or_tokenizer_is_refused(bench, corpus, change, said, tasks):
    config = bench.config(corpus)
    if tasks is None:
        prepare(config)
    else:
        with pytest.raises(KeyboardInterrupt):
            prepare(config, watch=interrupt_after(tasks))
    before = state_of(config.output)
    change(config)
    with pytest.raises(PrepareError, match=said):
        prepare(config)
    assert {path: state for path, state in state_of(config.output).items() if path.name != "lock"} == {
        path: state for path, state in before.items() if path.name != "lock"
    }


def test_other_settings_are_refused_and_named(bench, corpus):
    config = bench.config(corpus)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, watch=interrupt_after(2))
    with pytest.raises(PrepareError, match="shard_bytes was 5000, now 6000"):
        bench.prepare(corpus, output=config.output, shard_bytes=6000)
    more = write_jsonl(bench.folder / "b.jsonl", ["x"])
    with pytest.raises(PrepareError, match=r"1 new \(such as .*b\.jsonl\)"):
        bench.prepare(corpus, more, output=config.output)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("aab", "ab", r"1 gone \(such as .*a\.jsonl\)"),
        ("ab", "aab", r"1 new \(such as .*a\.jsonl\)"),
        ("aab", "aba", "in another order"),
    ],
)
def test_a_file_that_is_named_twice_counts_twice(bench, before, now, said):
    paths = {name: write_jsonl(bench.folder / f"{name}.jsonl", TEXTS[:40]) for name in "ab"}
    config = bench.config(*(paths[name] for name in before))
    with pytest.raises(KeyboardInterrupt):
        prepare(config, watch=interrupt_after(4))
    with pytest.raises(PrepareError, match=said):
        bench.prepare(*(paths[name] for name in now), output=config.output)


def test_parts_of_other_pieces_of_the_input_are_not_taken_for_those_of_a_task(bench, monkeypatch):
    table = pa.table({"text": TEXTS})
    for name in "ab":
        pq.write_table(table, bench.folder / f"{name}.parquet", row_group_size=5)
    config = bench.config(bench.folder / "a.parquet", bench.folder / "b.parquet", on_error="skip", task_bytes=500)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, watch=interrupt_after(10))

    def lost(*_):
        raise OSError("what pyarrow says of a file that it cannot decode")

    with monkeypatch.context() as patch:
        patch.setattr("xlstm_jax.prepare.tasks.open_file", lost)
        with pytest.raises(PrepareError, match=r"other tasks .* from .*a\.parquet on"):
            prepare(config)
    prepare(config)
    assert bench.texts_of(config.output) == TEXTS + TEXTS


def shorten(path):
    path.write_bytes(path.read_bytes()[:3000])


def rewrite(path):
    path.write_bytes(path.read_bytes().replace(b" w1 ", b" w2 "))


@pytest.mark.parametrize(("change", "said"), [(shorten, "changed"), (rewrite, "changed"), (Path.unlink, "is gone")])
@pytest.mark.parametrize("after", [1, "all"])
def test_input_that_changes_while_it_is_read_is_refused(bench, corpus, change, said, after):
    config = bench.config(corpus)

    def change_once(progress):
        if corpus in unchanged and (after == 1 or progress.read_bytes == progress.total_bytes):
            unchanged.remove(corpus)
            change(corpus)

    unchanged = [corpus]
    with pytest.raises(PrepareError, match=rf"a\.jsonl.* {said} since"):
        prepare(config, watch=change_once)
    assert not unchanged
    assert not (config.output / "manifest.json").exists()


def test_a_part_of_a_file_that_changed_under_the_reader_is_not_kept(bench, corpus, monkeypatch):
    config = bench.config(corpus)

    def read_and_rewrite(piece, config):
        yield from read_texts(piece, config)
        rewrite(corpus)

    monkeypatch.setattr("xlstm_jax.prepare.tokenizing.read_texts", read_and_rewrite)
    with pytest.raises(PrepareError, match="changed since"):
        prepare(config)
    assert not list((config.output / ".unfinished" / "parts").glob("*.json"))


def test_a_line_reader_knows_where_its_piece_ends(bench, corpus):
    config = bench.config(corpus)
    piece = Piece(str(corpus), "jsonl", None, 0, corpus.stat().st_size, 1, "")
    assert sum(text is not None for _, text in read_texts(piece, config)) == 150
    shorten(corpus)
    with pytest.raises(PrepareError, match="shorter"):
        list(read_texts(piece, config))


def test_urls_are_told_apart_by_their_queries_and_not_by_their_signatures():
    url = "https://someone:secret@host/get"
    assert resource(f"{url}?id=1") != resource(f"{url}?id=2")
    assert resource(f"{url}?id=1&X-Amz-Signature=ab&Expires=5") == resource(f"{url}?id=1&X-Amz-Signature=cd&Expires=6")
    assert "secret" not in resource(f"{url}?id=1&sig=secret")


def test_two_processes_do_not_work_on_one_store(bench, corpus):
    config = bench.config(corpus)
    with Workspace(config.output).locked(), pytest.raises(PrepareError, match="Another process prepares"):
        prepare(config)


def test_a_lock_that_was_cleared_away_while_it_was_taken_keeps_others_out(bench, corpus, monkeypatch):
    folder = bench.folder / "store"
    first, second, third = (Workspace(folder) for _ in range(3))
    flock = fcntl.flock

    def end_of_the_first(*given):
        # The second has opened the lock, and has not locked it yet.
        monkeypatch.setattr(fcntl, "flock", flock)
        first.end()
        ours.close()
        flock(*given)

    ours = ExitStack()
    ours.enter_context(first.locked())
    monkeypatch.setattr(fcntl, "flock", end_of_the_first)
    with second.locked(), pytest.raises(PrepareError, match="Another process prepares"), third.locked():
        pass
    assert sorted(path.name for path in folder.iterdir()) == [".unfinished"]


def test_a_store_that_another_process_finishes_meanwhile_is_finished(bench, corpus, monkeypatch):
    expected = whole_content_of(bench.prepare(corpus))
    config = bench.config(corpus)
    locked = Workspace.locked

    def others_first(workspace):
        monkeypatch.setattr(Workspace, "locked", locked)
        prepare(config)
        return locked(workspace)

    monkeypatch.setattr(Workspace, "locked", others_first)
    prepare(config)
    assert whole_content_of(config.output) == expected
    assert not [path for path in config.output.iterdir() if path.is_dir()]


def test_a_store_of_someone_else_is_not_overwritten(bench, corpus):
    first = bench.prepare(corpus)
    (first / "manifest.json").unlink()
    with pytest.raises(PrepareError, match="not of this tool"):
        bench.prepare(corpus, output=first)
    assert len(TokenStore(first)) == 150
