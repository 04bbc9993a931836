"""Adds up an order, by way of a file: what is safe while a directory for temporary files is one's own.

It doesn't know perinvoke. Beside other invocations in one /tmp it would read their lines in the file; with the layer each has
a file of its own.
"""

import csv
import tempfile
import time
from pathlib import Path


def handler(event, context):
    """The sum of ``event["prices"]``, and how many there were."""
    path = Path(tempfile.gettempdir()) / "order.csv"  # the same name in every invocation
    for number, price in enumerate(event["prices"]):
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([number, price])
        time.sleep(event.get("pause_seconds", 0))  # as if each price had to be asked for
    with path.open(newline="", encoding="utf-8") as file:
        prices = [int(price) for _, price in csv.reader(file)]
    return {"prices": len(prices), "sum": sum(prices)}
