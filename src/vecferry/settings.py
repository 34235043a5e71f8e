"""Settings from the environment and `.env`; with cli.py the only reader of either. See .env.example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from vecferry.encode.batching import Limits
from vecferry.encode.loading import EncoderOptions, Fingerprint
from vecferry.encode.runtime import Device
from vecferry.errors import SettingsError
from vecferry.options import Count, expected_of

DEFAULT_ARTIFACT = Path("models/bge-m3-onnx")
CountInText = Annotated[Count, Field(strict=False)]
"""As the environment has it."""


class Settings(BaseSettings):
    """Each field's alias is its name in the environment; the environment wins over `.env`."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8-sig", env_ignore_empty=True, extra="ignore", frozen=True
    )

    use_onnx: bool = Field(True, alias="USE_ONNX", description="true or false")
    onnx_model_path: Path = Field(DEFAULT_ARTIFACT, alias="ONNX_MODEL_PATH", description="a folder")
    lightweight_embedding: bool = Field(False, alias="LIGHTWEIGHT_EMBEDDING", description="true or false")
    source: str | None = Field(None, alias="VECFERRY_SOURCE", description="a folder, package:NAME or hub id")
    offline: bool = Field(False, alias="VECFERRY_OFFLINE", description="true or false")
    device: Device = Field("cpu", alias="VECFERRY_DEVICE", description="cpu or cuda")
    threads: CountInText | None = Field(None, alias="VECFERRY_THREADS")
    processes: CountInText = Field(EncoderOptions.processes, alias="VECFERRY_PROCESSES")
    low_memory: bool = Field(False, alias="VECFERRY_LOW_MEMORY", description="true or false")
    max_batch_tokens: CountInText | None = Field(None, alias="VECFERRY_MAX_BATCH_TOKENS")
    memory_budget_mb: CountInText | None = Field(None, alias="VECFERRY_MEMORY_BUDGET_MB")
    cache: Path | None = Field(None, alias="VECFERRY_CACHE", description="a folder")
    cache_mb: CountInText = Field(EncoderOptions.cache_mb, alias="VECFERRY_CACHE_MB")
    fingerprint: Fingerprint | None = Field(None, alias="VECFERRY_FINGERPRINT")
    store_url: SecretStr | None = Field(
        None, alias="VECFERRY_STORE_URL", description="postgresql://user:password@host/database"
    )
    store_token: SecretStr | None = Field(None, alias="VECFERRY_STORE_TOKEN", description="the token of a server")
    api_keys: SecretStr | None = Field(
        None, alias="VECFERRY_API_KEYS", description="keys of at least 16 characters, joined by commas"
    )

    def options(self) -> EncoderOptions:
        """Return what to load."""
        return EncoderOptions(
            artifact=self.onnx_model_path,
            use_onnx=self.use_onnx,
            lightweight=self.lightweight_embedding,
            source=self.source,
            offline=self.offline,
            threads=self.threads,
            device=self.device,
            limits=self._limits(),
            fingerprint=self.fingerprint,
            cache=self.cache,
            cache_mb=self.cache_mb,
            low_memory=self.low_memory,
            processes=self.processes,
        )

    def _limits(self) -> Limits | None:
        """Return the limits that were set, with the defaults for what was not; None if nothing was."""
        values = {"max_batch_tokens": self.max_batch_tokens, "memory_budget_mb": self.memory_budget_mb}
        chosen = {name: value for name, value in values.items() if value is not None}
        return Limits(**chosen) if chosen else None


def read_settings() -> Settings:
    """Read the environment. Raises SettingsError for the first bad value, by the name under which it was set."""
    try:
        return Settings()
    except ValidationError as exc:
        raise _translated(exc.errors()[0]) from exc


def _translated(problem: Any) -> SettingsError:
    alias = str(problem["loc"][0])
    name, field = next(each for each in Settings.model_fields.items() if each[1].alias == alias)
    return SettingsError(alias, problem["input"], field.description or expected_of(Settings, name))
