"""The real runtime's parent process, but for one thing: it starts another worker for each one that has died.

A program (``python replacing.py HANDLER``) that AWS_LAMBDA_EXEC_WRAPPER starts in place of ``python -m awslambdaric HANDLER``. So
it lives where the runtime lives, below the local environment's keeper, and ends with all its workers however a test ends. It has
imported awslambdaric and not the handler, as the real parent, and what the handler imports besides: a replacement costs little
more than a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from importlib import import_module
from multiprocessing.connection import wait
from typing import Any

from awslambdaric.lambda_config import LambdaConfigProvider
from awslambdaric.lambda_multi_concurrent_utils import MultiConcurrentRunner

# Three hundred workers need not load these one by one. None of them may own anything before the fork.
_LOADED_BEFORE_THE_FORK = (
    *("pathlib", "subprocess", "tempfile", "typing"),
    *("perinvoke.handler", "perinvoke.sharing.files", "perinvoke.sharing.locks", "perinvoke.invocation.state"),
)


def main(arguments: list[str]) -> None:
    """Keep the number of workers for ever."""
    for module in _LOADED_BEFORE_THE_FORK:
        import_module(module)
    config = LambdaConfigProvider(arguments)
    what = (config.handler, config.api_address, config.use_thread_polling, config.lmi_socket_path)
    fork = multiprocessing.get_context("fork")
    workers: dict[Any, Any] = {}
    while True:
        while len(workers) < int(config.max_concurrency):
            worker = fork.Process(target=MultiConcurrentRunner.run_single, args=what)
            worker.start()
            workers[worker.sentinel] = worker
        for sentinel in wait(list(workers)):
            ended = workers.pop(sentinel)
            ended.join()
            ended.close()


if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # as with -m: the handler's folder, not this file's
    main(sys.argv)
