"""What a user would pick instead, on the same documents and in the same run: `make bench-peers`.

Each is set up as its makers recommend, reads in shuffled order, and delivers batches of 32 rows to one process. Most
deliver less than an `LLMBatch`: what each does and does not do stands in `docs/performance.md`. Those that may use
worker processes are measured with and without; the faster one counts. Each is measured in a process of its own: threads
that some leave behind, and memory as they leave it, slow others down, up to seven times.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import corpus
import numpy as np
import torch
from measuring import Pipeline, answer_of, circumstances, machine, rate_once, rates, versions
from pipelines import BATCH
from throughput import DEVICE, HOST, compared

from xlstm_jax.dataset import TokenStore

LENGTH = 2048
PACKAGES = ("xlstm-data", "grain", "jax", "numpy", "torch", "litdata", "megatron-core", "mosaicml-streaming")
WORKERS = 2


def main() -> None:
    """Prepare the stores of all, measure in turns, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=corpus.DOCUMENTS)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(".bench"), help="stores and results")
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)  # What `_alone` asks for.
    options = parser.parse_args()
    if options.alone:
        _answer_and_end(options)
    stores = options.output / "stores"
    corpus.token_store(stores, options.documents)
    measures = {f"{family}{how}": partial(_alone, family, how) for family in FAMILIES for how in _prepared(family)}
    if HOST not in measures:
        sys.exit("This library itself does not work here, see above; the others are measured against it.")
    corpus.read_once(*_files(stores, options.documents))
    results: dict[str, Any] = {"machine": machine(), "versions": versions(*PACKAGES)}
    with circumstances() as beside:
        found = rates(measures, options.repeats)
    results["measured"] = {"peers": beside}
    ours = found[HOST].per_second
    results["context 2048"] = table = {
        name: rate._asdict() | {"ours, as a ratio": ours / rate.per_second} for name, rate in found.items()
    }
    options.output.joinpath("peers.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{'':<66}{'M tokens/s':>11}{'per CPU s':>11}{'ours is':>10}")
    for name, row in sorted(table.items(), key=lambda item: -item[1]["per_second"]):
        figures = f"{row['per_second'] / 1e6:>11.1f}{row['per_cpu_second'] / 1e6:>11.1f}"
        print(f"{name:<66}{figures}{row['ours, as a ratio']:>8.1f} x")
    print(f"\nWritten to {options.output / 'peers.json'}.")


def _prepared(family: str) -> list[str]:
    """The pipelines of a family that work here; its files are made where they are missing."""
    print(f"preparing {family or 'this library'}", flush=True)
    try:
        hows: list[str] = _alone(family)
    except subprocess.CalledProcessError:  # Which has told why.
        print("  left out", flush=True)
        return []
    return hows


def _files(stores: Path, documents: int) -> list[Path]:
    """What is read by any of them: our store and Megatron's, LitData's, Mosaic's."""
    folders = [_folder(stores, maker, documents) for maker in ("litdata", "mosaic")]
    return [
        corpus.store_path(stores, documents).with_suffix(".bin"),
        *(path for folder in folders for path in folder.rglob("*") if path.is_file()),
    ]


def _folder(stores: Path, maker: str, documents: int) -> Path:
    """Where so many documents lie in the format of a maker."""
    return stores / f"{maker}-{documents}"


def _alone(*asked: str) -> Any:
    """What another process answers that is started as this one was."""
    return answer_of(*sys.argv, "--alone", *asked)


def _answer_and_end(options: argparse.Namespace) -> NoReturn:
    """Threads that some of them leave behind must not keep the process, whatever becomes of them."""
    failed = True
    try:
        print(f"\n{json.dumps(_answer(options))}", flush=True)
        failed = False
    except Exception:  # noqa: BLE001 - it is shown
        traceback.print_exc()
    finally:
        os._exit(failed)


def _answer(options: argparse.Namespace) -> Any:
    """The pipelines of a family, once each has yielded a batch, or the rate of one."""
    warnings.simplefilter("ignore")  # Of optional parts that are not installed.
    os.environ["PYTHONWARNINGS"] = "ignore"  # For worker processes.
    family, *how = options.alone
    stores = options.output / "stores"
    pipelines = FAMILIES[family](stores, corpus.token_store(stores, options.documents))
    for pipeline in [] if how else pipelines.values():
        with pipeline() as batches:
            next(batches)
    return rate_once(pipelines[how[0]], options.seconds) if how else list(pipelines)


# --- LitData ---------------------------------------------------------------------------------------------------------


def lit_data(stores: Path, store: TokenStore) -> dict[str, Pipeline]:
    """Blocks of its `TokensLoader`: documents end to end, cut anywhere; neither segments nor positions nor targets."""
    import litdata  # noqa: PLC0415 - each process imports the one that it measures

    folder = _folder(stores, "litdata", len(store))
    if not (folder / "index.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        parts = np.array_split(np.arange(len(store)), 8)
        litdata.optimize(
            partial(_lit_documents, str(stores), len(store)),
            inputs=[(int(part[0]), int(part[-1]) + 1) for part in parts],
            output_dir=str(folder),
            chunk_bytes="64MB",
            item_loader=litdata.TokensLoader(),
            num_workers=WORKERS,
            verbose=False,
        )

    def batches(workers: int | None) -> Iterator[Any]:
        dataset = litdata.StreamingDataset(
            str(folder), item_loader=litdata.TokensLoader(block_size=LENGTH + 1), shuffle=True, drop_last=True
        )
        if workers is None:
            return _stacked(dataset)
        return iter(_again(litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers)))

    return {
        ", blocks stacked": partial(_pipeline, partial(batches, None)),
        ", StreamingDataLoader": partial(_pipeline, partial(batches, 0)),
        f", StreamingDataLoader, {WORKERS} workers": partial(_pipeline, partial(batches, WORKERS)),
    }


def _lit_documents(stores: str, documents: int, part: tuple[int, int]) -> Iterator[Any]:
    store = corpus.token_store(Path(stores), documents)
    for number in range(*part):
        yield torch.from_numpy(store[number].astype(np.int32))


# --- Megatron --------------------------------------------------------------------------------------------------------


class _Vocabulary:
    """As much of a tokenizer as `GPTDataset` asks for."""

    eod = corpus.EOD
    pad = corpus.VOCABULARY
    vocab_size = corpus.VOCABULARY + 1
    unique_identifiers: dict[str, str] = {}  # noqa: RUF012 - Megatron reads it as an attribute


def megatron(stores: Path, store: TokenStore) -> dict[str, Pipeline]:
    """Its `GPTDataset` on the very files of our store: documents end to end, cut at row borders."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder  # noqa: PLC0415
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig  # noqa: PLC0415

    prefix = corpus.store_path(stores, len(store))
    found = {}
    for reset in (False, True):
        config = GPTDatasetConfig(
            random_seed=0,
            sequence_length=LENGTH,
            blend=([str(prefix)], None),
            split="1,0,0",
            path_to_cache=str(stores / "megatron-cache"),
            tokenizer=_Vocabulary(),
            reset_position_ids=reset,
            reset_attention_mask=reset,
            eod_mask_loss=reset,
            create_attention_mask=False,
        )
        dataset = BlendedMegatronDatasetBuilder(GPTDataset, [None, None, None], lambda: True, config).build()[0]
        what = ", positions and loss masks reset" if reset else ""
        found[f"{what}, samples one by one"] = partial(_pipeline, partial(_samples, dataset))
        for workers in (0, WORKERS):
            how = f", {workers} workers" if workers else ""
            loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)
            found[f"{what}{how}"] = partial(_pipeline, lambda loader=loader: iter(_again(loader)))
    return found


def _samples(dataset: Any) -> Iterator[Any]:
    """As many as a batch has, not stacked."""
    while True:
        for at in range(0, len(dataset) - BATCH, BATCH):
            yield [dataset[number] for number in range(at, at + BATCH)]


# --- Mosaic ----------------------------------------------------------------------------------------------------------


def mosaic(stores: Path, store: TokenStore) -> dict[str, Pipeline]:
    """Its `StreamingDataset` with samples of one block: documents end to end, cut at row borders; tokens alone."""
    # Its data sets of pictures need operators of torchvision that are not built for every PyTorch; tokens do not.
    sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # noqa: PLC0415
    from streaming.base.util import clean_stale_shared_memory  # noqa: PLC0415

    folder = _folder(stores, "mosaic", len(store))
    if not (folder / "index.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:int32:{LENGTH + 1}"}) as writer:
            for block in _blocks(store):
                writer.write({"tokens": block})

    def batches(workers: int) -> Iterator[Any]:
        clean_stale_shared_memory()
        dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
        loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)
        return iter(_again(loader))

    return {
        "": partial(_pipeline, partial(batches, 0)),
        f", {WORKERS} workers": partial(_pipeline, partial(batches, WORKERS)),
    }


def _blocks(store: TokenStore) -> Iterator[Any]:
    """The documents end to end, in blocks of a row and its last target."""
    left = np.empty(0, np.int32)
    for at in range(0, len(store), 4096):
        left = np.concatenate([left, *store.__getitems__(range(at, min(at + 4096, len(store))))]).astype(np.int32)
        whole = len(left) // (LENGTH + 1)
        yield from left[: whole * (LENGTH + 1)].reshape(whole, LENGTH + 1)
        left = left[whole * (LENGTH + 1) :]


# --- The few lines that many write -----------------------------------------------------------------------------------


def random_slices(stores: Path, store: TokenStore) -> dict[str, Pipeline]:
    """Slices at random places of the mapped tokens, as nanoGPT takes them; each token any number of times an epoch."""
    tokens = np.memmap(corpus.store_path(stores, len(store)).with_suffix(".bin"), np.uint16, "r")

    def batches() -> Iterator[Any]:
        while True:
            places = torch.randint(len(tokens) - LENGTH - 1, (BATCH,)).tolist()
            inputs = torch.stack([torch.from_numpy(tokens[at : at + LENGTH].astype(np.int64)) for at in places])
            targets = torch.stack(
                [torch.from_numpy(tokens[at + 1 : at + 1 + LENGTH].astype(np.int64)) for at in places]
            )
            yield inputs, targets

    return {"": partial(_pipeline, batches)}


def this_library(stores: Path, store: TokenStore) -> dict[str, Pipeline]:
    """This library, Grain's own pipeline, and the copy limit."""
    pipelines = compared(corpus.store_path(stores, len(store)), LENGTH)
    del pipelines[DEVICE]  # The others deliver host arrays.
    return pipelines


FAMILIES: dict[str, Callable[[Path, TokenStore], dict[str, Pipeline]]] = {
    "": this_library,
    "LitData TokensLoader": lit_data,
    "Megatron GPTDataset": megatron,
    "Mosaic StreamingDataset": mosaic,
    "random slices of a memmap": random_slices,
}


@contextmanager
def _pipeline(opened: Callable[[], Iterator[Any]]) -> Iterator[Iterator[int]]:
    """Tokens of each batch; rows are full, as nothing is packed."""
    batches = opened()
    yield (BATCH * LENGTH for _ in batches)
    del batches  # Its worker processes end with it.


def _stacked(rows: Any) -> Iterator[Any]:
    batch = []
    for row in _again(rows):
        batch.append(row)
        if len(batch) == BATCH:
            yield torch.stack(batch)
            batch = []


def _again(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
