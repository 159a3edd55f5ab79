"""The release of Infisical's Python SDK that is the judge."""

REQUIREMENT = "infisicalsdk==0.2.0"
