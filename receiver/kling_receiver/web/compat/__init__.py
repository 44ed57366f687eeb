"""Kling's own API (KLING_COMPAT_API=on), for programs that change only their base address."""
