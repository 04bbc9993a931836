"""What Lambda allows, in its own figures. Source: AWS Lambda Developer Guide, "Lambda quotas" and "Lambda Managed Instances"."""

from __future__ import annotations

MIB = 1024 * 1024

# A function's code and all its layers together, unpacked.
UNPACKED_BYTES = 250 * MIB
# A zip that is sent in the request itself; a larger one goes through S3.
DIRECT_UPLOAD_BYTES = 50 * MIB
LAYERS_PER_FUNCTION = 5
# All environment variables together, as the JSON of their names and values.
ENVIRONMENT_BYTES = 4096

# Versions of Python that perinvoke and a managed runtime have in common.
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# From this one on functions run on Managed Instances.
MANAGED_INSTANCES_PYTHON = (3, 13)
# Workers of an environment there, where nobody has said otherwise.
WORKERS_PER_VCPU = 16
# The least that an environment may have for each vCPU there.
MEMORY_GIB_PER_VCPU = 2
ARCHITECTURES = ("x86_64", "arm64")
