#!/usr/bin/env python3
"""Looks up keys in the near tier of this host's node.

python3 near_get.py NAME    NAME is the node's near.shared; one key a line on standard input
"""

import os
import sys

import larder_near

with larder_near.Near(
    sys.argv[1], os.environ.get("LARDER_NEAR_LIBRARY", "liblarder_near.so")
) as near:
    for line in sys.stdin:
        result, value = near.look(line.rstrip("\n"))
        print(result.name, value.decode() if value is not None else "", flush=True)
