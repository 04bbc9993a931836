"""A table in words: what it is, and whether leases and idempotency can use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perinvoke.fleet.table.shape import notes_about, wrong_with

if TYPE_CHECKING:
    from perinvoke.fleet.table.shape import Table

_KIBIBYTE = 1024


def lines_about(table: Table, region: str) -> list[str]:
    """An aligned table; the last lines say what is wrong with it, and what to know."""
    wrong = wrong_with(table)
    rows = [
        ("table", table.name),
        ("region", region),
        ("status", table.status),
        ("key", table.key_text),
        ("billing", _billing(table)),
        ("TTL", _ttl(table)),
        ("items", f"{table.items:,} ({_size(table.bytes)}), as counted within the last six hours"),
        *_regions(table),
        *(("wrong", str(each)) for each in wrong),
        *(("note", note) for note in notes_about(table)),
        ("verdict", "OK: leases and idempotency can use it" if not wrong else "doesn't fit"),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _billing(table: Table) -> str:
    if table.capacity is None:
        return "on demand"
    reads, writes = table.capacity
    return f"provisioned: {reads} reads and {writes} writes per second"


def _ttl(table: Table) -> str:
    told = {"ENABLED": "on", "ENABLING": "on within the hour", "DISABLING": "just being turned off", "DISABLED": "off"}
    status = told.get(table.ttl_status, table.ttl_status)
    return status if table.ttl_attribute is None else f"{status}, by {table.ttl_attribute}"


def _size(count: int) -> str:
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= _KIBIBYTE and len(units) > 1:
        size /= _KIBIBYTE
        units.pop(0)
    return f"{count} bytes" if units[0] == "bytes" else f"{size:,.1f} {units[0]}"


def _regions(table: Table) -> list[tuple[str, str]]:
    if not table.replicas:
        return []
    replicas = ", ".join(f"{region} {status}" for region, status in table.replicas)
    consistency = "strong" if table.consistency == "STRONG" else "eventual"
    return [("replicas", replicas), ("consistency", f"{consistency} over regions")]
