"""The public names of the fleet: each can be had, whatever was imported before, and says what it needs."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

PACKAGES = {"perinvoke.fleet.dynamodb": ("boto3", "aws", "LeaseLock"), "perinvoke.fleet.sql": ("sqlalchemy", "sql", "locked")}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_can_be_had(package):
    script = f"import {package} as it; assert all(getattr(it, name) for name in it.__all__); assert dir(it) == it.__all__"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_has_the_name_of_what_a_package_offers(package):
    """Whoever imports a module sets its name in the package."""
    it = importlib.import_module(package)
    assert {module.name for module in pkgutil.iter_modules(it.__path__)} & set(it.__all__) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wrong_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        _ = importlib.import_module(package).nonsense


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_missing_is_named_with_its_extra(package):
    needs, extra, name = PACKAGES[package]
    script = f"import sys; sys.modules[{needs!r}] = None; from {package} import {name}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"which isn't installed: pip install 'perinvoke[{extra}]'" in run.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_brings_nothing_heavy(package):
    script = f"import {package}, sys; print(*{{'boto3', 'botocore', 'sqlalchemy', 'asyncio'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).split() == []
