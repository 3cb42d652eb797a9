"""Arrays on their way to a worker: files, each content once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tvmx.measure._jobs import Array, Job, KernelJob
from tvmx.measure._tasks import ArrayRef, KernelSpec, NetworkSpec, Spec

_KEEP_BYTES = 512 << 20


class Spool:
    """A folder of .npy files named by content; the least recently used go first."""

    def __init__(self, folder: Path, keep_bytes: int = _KEEP_BYTES) -> None:
        self._folder = folder
        self._keep = keep_bytes
        self._files: OrderedDict[str, ArrayRef] = OrderedDict()

    def put(self, array: Array) -> ArrayRef:
        """Write the array unless it is there already."""
        array = np.ascontiguousarray(array)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
        name = digest.hexdigest()
        ref = self._files.get(name)
        if ref is None:
            path = self._folder / f"{name}.npy"
            np.save(path, array, allow_pickle=False)
            ref = self._files[name] = ArrayRef(str(path), name, array.nbytes)
        self._files.move_to_end(name)
        return ref

    def trim(self) -> None:
        """Delete the oldest files above the limit. Call between tasks only."""
        total = sum(ref.nbytes for ref in self._files.values())
        while total > self._keep:
            _, ref = self._files.popitem(last=False)
            Path(ref.path).unlink(missing_ok=True)
            total -= ref.nbytes

    def spec(self, job: Job) -> Spec:
        """The job with its arrays in the spool."""
        if isinstance(job, KernelJob):
            return KernelSpec(
                name=job.name,
                library=str(job.library.resolve()),
                symbol=job.symbol,
                inputs=self._put_all(job.inputs),
                out_shape=tuple(job.out_shape),
                out_dtype=job.out_dtype,
                expected=None if job.expected is None else self.put(job.expected),
                layout=job.layout,
                channels=job.channels,
                rtol=job.rtol,
            )
        return NetworkSpec(
            name=job.name,
            library=str(job.library.resolve()),
            inputs=self._put_all(list(job.inputs.values())),
            expected=None if job.expected is None else self._put_all(job.expected),
            rtol=job.rtol,
        )

    def _put_all(self, arrays: Sequence[Array]) -> tuple[ArrayRef, ...]:
        return tuple(self.put(a) for a in arrays)
