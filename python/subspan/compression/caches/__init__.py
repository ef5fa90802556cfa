"""Caches of keys and values in fewer dimensions; its names are those of `subspan.compression`."""
