"""The builder's configuration, timing cache and shape profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .surface import SURFACES, Guarded

if TYPE_CHECKING:
    from .module import RecordedTensorrt


class Config(Guarded):
    def __init__(self, trt: RecordedTensorrt) -> None:
        super().__init__(trt, "IBuilderConfig")
        for key, value in (
            ("_flags", set()),
            ("_cleared", set()),
            ("_shapes", {}),
            ("_limits", {}),
            ("_cache", None),
        ):
            object.__setattr__(self, key, value)
        object.__setattr__(self, "_verbosity", "LAYER_NAMES_ONLY")

    @property
    def profiling_verbosity(self) -> Any:
        return self._verbosity

    @profiling_verbosity.setter
    def profiling_verbosity(self, value: Any) -> None:
        names = SURFACES[self._trt._era]["ProfilingVerbosity"]
        object.__setattr__(self, "_verbosity", names[value])

    def _name(self, flag: int) -> str:
        return SURFACES[self._trt._era]["BuilderFlag"][flag]

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._limits[pool] = size

    def set_flag(self, flag: int) -> None:
        self._flags.add(self._name(flag))

    def clear_flag(self, flag: int) -> None:
        self._cleared.add(self._name(flag))

    def add_optimization_profile(self, profile: Any) -> int:
        self._shapes.update(profile._shapes)
        return 0

    def create_timing_cache(self, data: bytes) -> Any:
        return TimingCache(self._trt, data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        object.__setattr__(self, "_cache", cache._data)
        return True

    def get_timing_cache(self) -> Any:
        return TimingCache(self._trt, b"timings")


class TimingCache(Guarded):
    def __init__(self, trt: RecordedTensorrt, data: bytes) -> None:
        super().__init__(trt, "ITimingCache")
        object.__setattr__(self, "_data", data)

    def serialize(self) -> bytes:
        return self._data


class ShapeProfile(Guarded):
    def __init__(self, trt: RecordedTensorrt) -> None:
        super().__init__(trt, "IOptimizationProfile")
        object.__setattr__(self, "_shapes", {})

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(least, best, most, strict=True))
        self._shapes[name] = [list(least), list(best), list(most)]
