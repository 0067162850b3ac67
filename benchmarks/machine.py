"""What a figure was measured on."""

from maskunet.machine import machine

__all__ = ["machine"]
