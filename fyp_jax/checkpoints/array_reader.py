"""Reads single arrays of one item of a step. Orbax's own restore needs the names of all arrays of the
item."""

import asyncio
import threading
from typing import Any

import numpy as np
from etils import epath
from orbax.checkpoint import type_handlers

from fyp_jax.checkpoints.manager import Damaged
from fyp_jax.convert.lazy import LazyArray
from fyp_jax.errors import reason


class ArrayReader:
    """Reads arrays as a whole, however they were sharded when they were written."""

    def __init__(self, directory: epath.Path):
        self._lock = threading.Lock()
        self._runner = asyncio.Runner()
        self._handler = type_handlers.NumpyHandler()
        self._ocdbt = type_handlers.is_ocdbt_checkpoint(directory)
        self._context = type_handlers.get_ts_context(use_ocdbt=self._ocdbt)

    def lazy_array(self, leaf: Any) -> LazyArray:
        """An array of Orbax's metadata, not read yet. Reading it raises Damaged where that fails."""
        info = type_handlers.ParamInfo(
            name=leaf.name,
            parent_dir=leaf.directory,
            is_ocdbt_checkpoint=self._ocdbt,
            ts_context=self._context,
        )
        return LazyArray(tuple(leaf.shape), np.dtype(leaf.dtype), lambda: self._read(info))

    def _read(self, info: type_handlers.ParamInfo) -> np.ndarray:
        arrays: list[np.ndarray] = []

        async def read() -> None:  # returns nothing: asyncio would format the returned array, which is slow
            arrays.extend(await self._handler.deserialize([info]))

        try:
            with self._lock:
                self._runner.run(read())
        except Exception as error:  # Orbax raises no narrower class for files that are missing or truncated
            raise Damaged(f"{info.name} cannot be read completely ({reason(error)})") from error
        return arrays[0]
