"""An ordinary unit test of the function: no perinvoke, no Lambda."""

import tempfile

import app


def test_it_adds_up_the_prices(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert app.handler({"prices": [3, 4]}, None) == {"prices": 2, "sum": 7}
