"""A server's whole configuration: each stage's own, composed."""

from __future__ import annotations

from dataclasses import dataclass, field

from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.model.config import EngineConfig
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.errors import ConfigError

ADMIN_TOKEN = "COATCHECK_ADMIN_TOKEN"  # environment: the token of the /admin routes


@dataclass(frozen=True)
class ServeConfig:
    """What ``coatcheck serve`` runs."""

    frontend: FrontendConfig
    engine: EngineConfig
    ranks: RankConfig
    tp: int = 2  # ranks of the tensor-parallel group
    external_ranks: bool = False  # torchrun or another tool starts the ranks; we only print where they connect
    admin_token: str | None = field(default=None, repr=False)  # opens /admin; None: there is no such route

    def __post_init__(self) -> None:
        if not 1 <= self.tp <= 64:
            raise ConfigError(f"--tp: {self.tp} ranks; allowed: 1 to 64, as far as the model's heads can be divided")
        token = self.admin_token
        if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
            raise ConfigError(f"--admin-token or {ADMIN_TOKEN}: allowed: printable ASCII, no spaces, not empty")
