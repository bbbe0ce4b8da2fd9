"""The near tier of this host's Larder node, read from shared memory. Needs liblarder_near.so alone.

    near = Near("shop")                                     # the node's near.shared
    product = near.get("product:7", ask=redis.Redis(port=7379).get)
"""

import ctypes
import enum
import threading


class Result(enum.IntEnum):
    """What a look comes to; see larder/near.h."""

    FOUND = 0
    ABSENT = 1
    MISS = 2
    TOO_SMALL = 3
    NODE_DOWN = 4
    RESTARTED = 5
    INVALID = -1
    NOT_FOUND = -2
    DENIED = -3
    VERSION = -4
    CORRUPT = -5
    SYSTEM = -6


class NearError(Exception):
    """Something that a program should hear of; `result` says what."""

    def __init__(self, result, text):
        super().__init__(text)
        self.result = result


class Info(ctypes.Structure):
    """Counts of this handle, and what is known of the node: larder_near_info."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "found", "absent", "misses", "too_small", "node_down", "restarted", "corrupt",
            "hits_dropped", "bytes", "instance",
        )
    ] + [("lease_us", ctypes.c_int64)]


def _load(path):
    library = ctypes.CDLL(path)
    handle, size = ctypes.c_void_p, ctypes.c_size_t
    library.larder_near_open.argtypes = [ctypes.c_char_p, ctypes.POINTER(handle)]
    library.larder_near_get.argtypes = [
        handle, ctypes.c_char_p, size, ctypes.c_void_p, size, ctypes.POINTER(size),
    ]
    library.larder_near_stats.argtypes = [handle, ctypes.POINTER(Info), size]
    library.larder_near_close.argtypes = [handle]
    library.larder_near_close.restype = None
    library.larder_near_text.restype = ctypes.c_char_p
    return library


class Near:
    """A near tier. For all threads at once; closed by close(), `with`, or the end of its life."""

    def __init__(self, name, library="liblarder_near.so"):
        self._handle = None
        self._library = _load(library)
        self._local = threading.local()
        handle = ctypes.c_void_p()
        self._check(self._library.larder_near_open(name.encode(), ctypes.byref(handle)))
        self._handle = handle

    def look(self, key):
        """(Result, value): FOUND with bytes; ABSENT, MISS, NODE_DOWN or RESTARTED with None."""
        key = key.encode() if isinstance(key, str) else key
        local = self._local
        if not hasattr(local, "buffer"):
            local.buffer, local.size = ctypes.create_string_buffer(4096), ctypes.c_size_t()
        while True:
            result = self._library.larder_near_get(
                self._handle, key, len(key), local.buffer, len(local.buffer),
                ctypes.byref(local.size),
            )
            if result == Result.FOUND:
                return Result.FOUND, ctypes.string_at(local.buffer, local.size.value)
            if result != Result.TOO_SMALL:
                self._check(result)
                return Result(result), None
            local.buffer = ctypes.create_string_buffer(local.size.value)

    def get(self, key, ask):
        """The value from here, or else ask(key); None if there is no such row."""
        result, value = self.look(key)
        if result == Result.RESTARTED:
            result, value = self.look(key)
        return value if result in (Result.FOUND, Result.ABSENT) else ask(key)

    def stats(self):
        info = Info()
        self._check(
            self._library.larder_near_stats(self._handle, ctypes.byref(info), ctypes.sizeof(info))
        )
        return info

    def close(self):
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.larder_near_close(handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        self.close()

    def _check(self, result):
        if result < 0:
            raise NearError(Result(result), self._library.larder_near_text(result).decode())
