"""Registry: which templates exist, where each comes from, and which can compute a workload."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from tvmx.errors import TemplateLoadError
from tvmx.ir import DENSE, Implementation
from tvmx.targets import Target
from tvmx.templates._base import ScheduleTemplate
from tvmx.templates._loading import fingerprint_of, load_template, load_templates, templates_in

ENTRY_POINT_GROUP = "tvmx.schedules"
_DTYPES = {"f32": "float32", "int8": "int8"}


@dataclass(frozen=True)
class TemplateRef:
    """A template as name and file: small, picklable, loadable in another process."""

    name: str
    path: str

    def load(self) -> ScheduleTemplate:
        """The template. Raises :class:`TemplateLoadError`."""
        return load_template(self.name, self.path)


@dataclass(frozen=True)
class TemplateEntry:
    """A registered template.

    ``origin`` says who brought it: ``built-in``, ``user file`` or
    ``entry point NAME (DISTRIBUTION)``.
    """

    name: str
    op: str
    template: ScheduleTemplate
    origin: str
    path: Path
    fingerprint: str

    @property
    def ref(self) -> TemplateRef:
        """Picklable description for worker processes."""
        return TemplateRef(self.name, str(self.path))

    def implementation(self, workload: Any, target: Target) -> Implementation:
        """The implementation record of this template, its fingerprint included."""
        return self.template.implementation(workload, target, self.fingerprint)

    def stated(self, workload: Any, target: Target) -> Implementation:
        """The implementation of a layer whose own workload this is (see ``Implementation``)."""
        found = self.implementation(workload, target)
        if workload.dtype == "float32":
            return found
        return found.model_copy(update={"stated": True})


def _exact(template: ScheduleTemplate, workload: Any) -> bool:
    """Whether it computes a layer in the type and rounding the model states it in, and dense."""
    epilogue = workload.epilogue
    same = _DTYPES.get(template.precision) == workload.dtype
    knows = template.float_epilogue or not epilogue.in_float
    return not template.sparse and same and knows and epilogue.rounding in template.roundings


def variants(
    template: ScheduleTemplate, workload: Any, target: Target, *, float_out: bool = False
) -> list[Any]:
    """The variants (type, sparsity) of a float dense layer that a template is made for.

    With ``float_out`` int8 ones write float32, if the template can.
    """
    sparsities = template.sparsities(workload, target) if template.sparse else (DENSE,)
    if template.precision == "int8":
        in_float = float_out and template.float_epilogue
        return [workload.variant("int8", s, float_out=in_float) for s in sparsities]
    return [workload.variant("float32", s) for s in sparsities]


class Registry:
    """Templates by name. Nothing is loaded before one of the ``load_*``/``add_*`` calls."""

    def __init__(self) -> None:
        self._entries: dict[str, TemplateEntry] = {}

    @classmethod
    def with_builtin(cls) -> Registry:
        """A registry that holds the built-in templates and installed entry points."""
        registry = cls()
        registry.load_builtin()
        registry.load_entry_points()
        return registry

    def load_builtin(self) -> None:
        """Load the templates that ship with tvmx (``schedules/``)."""
        from tvmx._resources import schedules_dir

        self._add_folder(schedules_dir(), "built-in")

    def load_entry_points(self) -> None:
        """Load what installed distributions offer under the group ``tvmx.schedules``.

        An entry point names a module or a ScheduleTemplate class.
        """
        for point in entry_points(group=ENTRY_POINT_GROUP):
            self._add_entry_point(point)

    def add_folder(self, path: Path) -> None:
        """Load every ``*.py`` of a user's folder, except names that start with ``_``.

        Raises :class:`TemplateLoadError` for a missing or empty folder, a file that does not
        import, one without a template, and for a name that is taken.
        """
        self._add_folder(path, "user file")

    def add_file(self, path: Path) -> None:
        """Load one user file. Raises :class:`TemplateLoadError` as :meth:`add_folder` does."""
        self._add_file(path, "user file")

    def get(self, name: str) -> TemplateEntry:
        """The entry of that name. Raises :class:`TemplateLoadError` when there is none."""
        if name not in self._entries:
            known = ", ".join(sorted(self._entries)) or "none"
            raise TemplateLoadError(
                f"no schedule template {name!r} is loaded (loaded: {known})",
                hint="name the folder that holds it: --schedules DIR",
            )
        return self._entries[name]

    def entries(self) -> list[TemplateEntry]:
        """All entries, by operator, priority and name."""
        return sorted(self._entries.values(), key=lambda e: (e.op, e.template.priority, e.name))

    def legal(self, workload: Any, target: Target) -> list[TemplateEntry]:
        """The dense templates that support ``workload`` in its type, the preferred first.

        ``workload`` is the layer's own: float, or int8 where the model states it so. Equally
        preferred templates come by name.
        """
        return sorted(
            (
                e
                for e in self._entries.values()
                if e.op == workload.op
                and _exact(e.template, workload)
                and e.template.supports(workload, target) is None
            ),
            key=lambda e: (e.template.preference(workload, target), e.name),
        )

    def implementations(
        self, workload: Any, target: Target, *, exact: bool = False, float_out: bool = False
    ) -> list[tuple[TemplateEntry, Implementation]]:
        """Every way to compute a layer: as the model states it first (the baseline's at the head).

        A float layer then has int8 ones, then block-sparse ones, each by (preference, name); one
        that the model states in int8 has no others. ``exact`` leaves out what changes the
        layer's numbers. ``float_out`` is for layers that no int8 reads (see
        :attr:`tvmx.ir.NetworkGraph.read_in_float`): int8 implementations then write float32.
        """
        found = [(e, e.stated(workload, target)) for e in self.legal(workload, target)]
        if exact or workload.dtype != "float32":
            return found
        others = [
            (entry, variant)
            for entry in self._entries.values()
            if entry.op == workload.op and not _exact(entry.template, workload)
            for variant in variants(entry.template, workload, target, float_out=float_out)
            if entry.template.supports(variant, target) is None
        ]
        others.sort(key=lambda o: (
            o[0].template.sparse, o[0].template.preference(o[1], target), o[0].name,
        ))  # fmt: skip
        return found + [(entry, entry.implementation(v, target)) for entry, v in others]

    def default(self, workload: Any, target: Target) -> TemplateEntry | None:
        """The baseline's template for a workload; None when no template supports it."""
        return next(iter(self.legal(workload, target)), None)

    def _add_folder(self, path: Path, origin: str) -> None:
        if not path.is_dir():
            what = "is a file, not a folder" if path.is_file() else "does not exist"
            raise TemplateLoadError(f"schedule folder {path} {what}")
        files = sorted(p for p in path.glob("*.py") if not p.name.startswith("_"))
        if not files:
            raise TemplateLoadError(f"schedule folder {path} holds no *.py file")
        for file in files:
            self._add_file(file, origin)

    def _add_file(self, path: Path, origin: str) -> None:
        path = path.resolve()
        if not path.is_file():
            raise TemplateLoadError(f"template file {path} does not exist")
        self._register(load_templates(path), path, origin)

    def _add_entry_point(self, point: EntryPoint) -> None:
        where = f"entry point {point.name} ({point.dist.name if point.dist else 'unknown'})"
        try:
            loaded = point.load()
        except Exception as err:
            raise TemplateLoadError(
                f"{where} = {point.value} cannot be loaded: {type(err).__name__}: {err}"
            ) from err
        module = loaded if isinstance(loaded, ModuleType) else inspect.getmodule(loaded)
        source = inspect.getsourcefile(loaded) if module else None
        if module is None or source is None:
            raise TemplateLoadError(f"{where} = {point.value} is neither a module nor a class")
        templates = templates_in(module, where)
        if inspect.isclass(loaded):
            templates = [t for t in templates if type(t) is loaded]
        self._register(templates, Path(source).resolve(), where)

    def _register(self, templates: list[ScheduleTemplate], path: Path, origin: str) -> None:
        for template in templates:
            other = self._entries.get(template.name)
            if other is not None:
                if other.path == path:
                    continue
                raise TemplateLoadError(
                    f"two templates are called {template.name!r}: {other.path} and {path}",
                    hint=f"rename the one in {path}",
                )
            self._entries[template.name] = TemplateEntry(
                name=template.name,
                op=template.op,
                template=template,
                origin=origin,
                path=path,
                fingerprint=fingerprint_of(path),
            )
