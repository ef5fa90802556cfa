"""Models in rotated bases with few bits; its names are those of `subspan.compression`."""
