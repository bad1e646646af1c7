"""The one resource: the way from a run to the chain."""

import dagster as dg

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.chain.profile import open_chain
from raynest_pipeline.settings import Settings, load_settings


class RaynestResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens the chain that the settings describe.

    Nothing happens at set-up: a failing set-up is not retried, and its errors don't reach the asset.
    """

    def settings(self) -> Settings:
        """The settings as they are now.

        Raises:
            SettingsError: They are wrong.
        """
        return load_settings()

    def chain(self, *, start_sandbox: bool = True, patience_seconds: float = 60.0) -> Chain:
        """The chain. See `open_chain`."""
        return open_chain(self.settings(), start_sandbox=start_sandbox, patience_seconds=patience_seconds)
