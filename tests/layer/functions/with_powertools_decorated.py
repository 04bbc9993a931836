from __future__ import annotations

import with_powertools  # type: ignore[import-not-found]  # beside it on Lambda

from perinvoke import isolated

handler = isolated(with_powertools.handler)
