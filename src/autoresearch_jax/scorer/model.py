"""Read the files of a training without trusting them: a function, and arrays.

Nothing here runs the agent's code. The function is data (StableHLO), and so are the arrays (orbax).
"""

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from autoresearch_jax.common import files, protocol, scored_files

EXPORT_BYTES = 1 << 26  # an exported function contains no parameters: 1 MB at full size
OPERATIONS = 200_000  # with those of a called function for each call: 3,000 at full size
CONSTANTS = 1 << 28  # numbers in its constants, likewise
PARAM_BYTES = 32 << 30  # of all arrays: 0.2 GB at full size
SPARE_BYTES = 1 << 26  # of a checkpoint, beyond its arrays
SPARE_FILES = 20  # of a checkpoint, beyond two for each array
DETAIL_LIMIT = 1000  # characters of a reason to refuse
DESCRIPTION_BYTES = 1 << 20  # of a file that describes an array

# Custom calls that a module may contain: attention kernels, and calls without operands in memory.
# Most of XLA's own (LAPACK, TopK, threefry) trust the shapes that a module states, and read beyond.
KERNELS = re.compile(
    r"__cudnn\$fmha\w+"
    r"|tpu_custom_call|mosaic_gpu(_v2)?"  # Pallas
    r"|__gpu\$xla\.gpu\.triton|triton_kernel_call"
    r"|Sharding|SPMD\w+|shape_assertion"
    r"|(mhlo|chlo)\.\w+|stablehlo\.dynamic_\w+"
)
# The files of a checkpoint in zarr's plain format. Orbax's other formats can refer to any file that
# the reader may read, and the scorer may read the validation rows.
PLAIN_ARRAYS = re.compile(
    r"_METADATA|_CHECKPOINT_METADATA|_sharding|commit_success\.txt|array_metadatas/[\w.]+"
    r"|(.+/)?(\.zarray|\d+(\.\d+)*)"
)
CHUNK = re.compile(r"/\d+(\.\d+)*$")  # a file with the numbers of an array
DIALECTS = ("builtin", "func", "stablehlo", "chlo", "sdy")
# These communicate with the host or with other devices, or their result is not a function of their
# operands: numbers of a generator whose state outlives a call, memory that was never written.
REFUSED_OPS = re.compile(
    r"(stablehlo|sdy)\.(infeed|outfeed|send|recv|async_\w+|partition_id|replica_id"
    r"|cross-replica-sum|all_\w+|collective_\w+|reduce_scatter|rng|set_dimension_size)"
)


class Refused(Exception):
    """The files of a training are not scored; `name` is the rule that they break."""

    def __init__(self, name: str, detail: str) -> None:
        detail = detail[:DETAIL_LIMIT]  # it may quote a name of megabytes
        super().__init__(f"{name}: {detail}")
        self.name = name
        self.detail = detail


def check_files(folder: Path) -> None:
    """Raise Refused if files are missing, or if there are links or files of other formats.

    Through a link a training could be scored with the files of another one.
    """
    if folder.is_symlink():
        raise Refused("symlink", f"{folder.name} is a link")
    try:
        found = dict(scored_files.scored(folder))
    except scored_files.TooMuch as error:
        raise Refused("format", str(error)) from None
    except OSError as error:
        where = os.path.relpath(error.filename or folder, folder)
        raise Refused("format", f"{where} cannot be read: {error.strerror}") from None
    for name in (protocol.EXPORTED, protocol.PARAMS):
        if name not in found:
            raise Refused("missing", f"the training left no {name}")
    if not stat.S_ISDIR(found[protocol.PARAMS].st_mode):
        raise Refused("symlink", f"{protocol.PARAMS} is a link or a file, not a folder")
    for name, status in found.items():
        kind = status.st_mode
        if stat.S_ISDIR(kind):
            continue
        if not stat.S_ISREG(kind):
            what = "a link" if stat.S_ISLNK(kind) else "not a regular file"
            raise Refused("symlink", f"{name} is {what}")
        within = name.removeprefix(f"{protocol.PARAMS}/")
        if within != name and not PLAIN_ARRAYS.fullmatch(within):
            raise Refused(
                "format", f"{protocol.PARAMS} contains {within}, which plain arrays do not need"
            )
        if within != name and not CHUNK.search(within) and status.st_size > DESCRIPTION_BYTES:
            raise Refused("format", f"{name} has {status.st_size} bytes, more than a description")


def read_export(path: Path) -> bytes:
    """Return the bytes of an export, which a running training may be replacing. Raises Refused."""
    try:
        if (size := path.lstat().st_size) > EXPORT_BYTES:
            raise Refused(
                "too-large",
                f"{path.name} has {size} bytes, more than {EXPORT_BYTES}: pass large constants of "
                "the function as parameters",
            )
        return files.plain_bytes(path, EXPORT_BYTES)
    except ValueError as error:
        raise Refused("truncated", f"{path.name} cannot be read: {error}") from None


def read_function(
    blob: bytes, tokens_shape: tuple[int, int], vocab_size: int
) -> jax.export.Exported:
    """Return the exported function f(flat, tokens) after all checks. Raises Refused."""
    name = protocol.EXPORTED
    try:
        exported = jax.export.deserialize(bytearray(blob))
        arguments, keywords = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        results = exported.out_avals
    except Exception as error:  # the bytes are untrusted, and JAX's reader expects valid ones
        raise Refused("truncated", f"{name} cannot be read: {error}") from None
    # `jax.default_backend` uses other names than exports do.
    platforms = [{"cuda": "gpu", "rocm": "gpu"}.get(one, one) for one in exported.platforms]
    if exported.nr_devices != 1 or jax.default_backend() not in platforms:
        raise Refused(
            "shape",
            f"{name} is for {exported.nr_devices} x {', '.join(exported.platforms)}, not for "
            f"one {jax.default_backend()}",
        )
    well_formed = not keywords and len(arguments) == 2 and isinstance(arguments[0], dict)
    if not well_formed or not all(type(key) is str for key in arguments[0]):
        raise Refused("shape", f"{name} is not a function of named arrays and tokens")
    if any(part in ("", ".", "..") for key in arguments[0] for part in key.split("/")):
        raise Refused("shape", f"{name} names an array by a path that leads out of its folder")
    tokens = arguments[1]
    if (tokens.shape, tokens.dtype) != (tokens_shape, np.int32):
        raise Refused("shape", f"it takes tokens {tokens.str_short()}, not int32{[*tokens_shape]}")
    shape: tuple[int, ...] = results[0].shape if len(results) == 1 else ()
    if len(shape) != 3 or shape[:2] != tokens_shape or shape[-1] < vocab_size:
        raise Refused("shape", f"it returns {shape}, not {(*tokens_shape, vocab_size)}")
    if not jax.numpy.issubdtype(results[0].dtype, np.floating):
        raise Refused("dtype", f"its logits are {results[0].dtype}, and must be floating point")
    check_module(exported)
    return exported


def check_module(exported: jax.export.Exported) -> None:
    """Raise Refused for operations and custom calls that reach beyond the module's operands.

    The checks of `jax.export` do not count, because they ran in the agent's process.
    """
    if exported.ordered_effects or exported.unordered_effects:
        raise Refused("custom-call", "the function has side effects")
    with mlir.make_ir_context() as context:
        module = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
        calls, ops = set(), set()
        sizes, called = {}, {}  # by function: its own operations and constants; what it calls
        for function in module.body.operations:
            size, callees = Counter[str](), Counter[str]()

            def visit(op: Any, size: Counter[str] = size, callees: Counter[str] = callees) -> Any:
                ops.add(op.name)
                size["operations"] += 1
                if op.name == "stablehlo.custom_call":
                    calls.add(ir.StringAttr(op.attributes["call_target_name"]).value)
                if op.name == "stablehlo.constant":
                    size["numbers in constants"] += math.prod(op.results[0].type.shape)
                callees.update(_symbols(op.attributes[i].attr for i in range(len(op.attributes))))
                within = size["operations"] <= OPERATIONS
                return ir.WalkResult.ADVANCE if within else ir.WalkResult.INTERRUPT

            function.operation.walk(visit)
            name = ir.StringAttr(function.attributes["sym_name"]).value
            sizes[name], called[name] = size, callees
        _check_expanded(sizes, called)
    for call in sorted(calls):
        if not KERNELS.fullmatch(call):
            raise Refused("custom-call", f"it calls {call!r}, which no rule allows")
    for name in sorted(ops):
        if name.split(".")[0] not in DIALECTS or REFUSED_OPS.fullmatch(name):
            raise Refused("custom-call", f"it contains {name}, which is no function of operands")


def _symbols(attributes: Iterable[Any]) -> Iterator[str]:
    """Yield the names of functions in attributes, such as the callee of a call."""
    for attribute in attributes:
        if isinstance(attribute, ir.FlatSymbolRefAttr):
            yield attribute.value
        elif isinstance(attribute, ir.ArrayAttr):
            yield from _symbols(attribute)


def _check_expanded(sizes: dict[str, Counter[str]], called: dict[str, Counter[str]]) -> None:
    """Raise Refused if a compiler, which copies a function for each call, would get too much."""
    total: dict[str, Counter[str]] = {}
    try:
        for name in TopologicalSorter(called).static_order():  # what is called comes first
            total[name] = sizes.get(name, Counter()).copy()
            for callee, times in called.get(name, {}).items():
                for what, count in total[callee].items():
                    total[name][what] += times * count
            for what, most in (("operations", OPERATIONS), ("numbers in constants", CONSTANTS)):
                if total[name][what] > most:
                    raise Refused("too-large", f"its function expands to more than {most} {what}")
    except CycleError:
        raise Refused("too-large", "its function calls itself") from None


def abstract_params(exported: jax.export.Exported) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of the arrays that the function takes, by name."""
    (wanted, _), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    return {name: jax.ShapeDtypeStruct(aval.shape, aval.dtype) for name, aval in wanted.items()}


def read_params(folder: Path, exported: jax.export.Exported) -> dict[str, np.ndarray]:
    """Return the arrays that the function takes, with the expected shapes and dtypes.

    They are in the host's memory, since a device may not hold all of them. The checkpoint's
    metadata is compared first, because orbax casts silently. Raises Refused.
    """
    import orbax.checkpoint as ocp  # takes a second

    wanted = abstract_params(exported)
    size = sum(array.size * array.dtype.itemsize for array in wanted.values())
    if size > PARAM_BYTES:
        raise Refused("too-large", f"its arrays need {size} bytes, more than {PARAM_BYTES}")
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    if len(sizes) > 2 * len(wanted) + SPARE_FILES:
        raise Refused("format", f"{folder.name} has {len(sizes)} files for {len(wanted)} arrays")
    found_bytes = sum(sizes)
    if found_bytes > 2 * size + SPARE_BYTES:
        raise Refused("shape", f"{folder.name} has {found_bytes} bytes, its arrays need {size}")
    own = jax.process_index()  # each process of a group reads a copy of its own
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
        stored = _or_truncated(lambda: dict(checkpointer.metadata(folder).item_metadata))
        for name in sorted(wanted.keys() | stored.keys()):
            if name not in stored or name not in wanted:
                where = "function" if name in wanted else "checkpoint"
                raise Refused("shape", f"parameter {name!r} is only in the {where}")
            for rule in ("shape", "dtype"):
                found, expected = getattr(stored[name], rule, None), getattr(wanted[name], rule)
                if found != expected:
                    raise Refused(rule, f"parameter {name!r} has {rule} {found}, not {expected}")
            _check_chunks(folder / name, wanted[name].shape)
        return _or_truncated(lambda: checkpointer.restore(folder, wanted))


def _check_chunks(folder: Path, shape: tuple[int, ...]) -> None:
    """Refuse an array in other chunks than one: a larger chunk could fill the memory."""
    path = folder / ".zarray"
    described = _or_truncated(lambda: json.loads(files.plain_bytes(path, DESCRIPTION_BYTES)))
    chunks = described.get("chunks") if isinstance(described, dict) else None
    if chunks != [max(1, size) for size in shape]:
        raise Refused("format", f"parameter {folder.name!r} is stored in chunks {chunks}")


def _or_truncated(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # damaged files fail in many ways, which are all the training's
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise Refused("truncated", f"{protocol.PARAMS} cannot be read: {words}") from None
