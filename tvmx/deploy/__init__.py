"""Deployment: bundles and the runner inside them. Importing this needs no TVM."""

from tvmx.deploy._bundle import Bundle, load_bundle, write_bundle
from tvmx.deploy._manifest import Figure, Manifest, Sizes, TensorSpec, installed_versions

__all__ = [
    "Bundle",
    "Figure",
    "Manifest",
    "Sizes",
    "TensorSpec",
    "installed_versions",
    "load_bundle",
    "write_bundle",
]
