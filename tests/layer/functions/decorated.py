from __future__ import annotations

import hazards  # type: ignore[import-not-found]  # beside it on Lambda

from perinvoke import isolated

handler = isolated(hazards.handler)
