"""The Dagster layer: thin enough to read in one sitting. The work itself is in chain/ and images/."""
