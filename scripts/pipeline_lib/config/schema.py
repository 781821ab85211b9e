"""Write configs/schema.json, from which editors complete the YAMLs: `python -m pipeline_lib.config.schema`."""

import json
import sys

from pipeline_lib.stage.atomic import write_bytes_atomic

from .base import PROJECT_ROOT
from .run import RunConfig

SCHEMA_PATH = PROJECT_ROOT / "configs" / "schema.json"


def schema_text() -> str:
    """Return the JSON Schema of a configuration file, `base:` included."""
    schema = RunConfig.model_json_schema()
    schema["title"] = "llm-training-pipeline run"
    schema["properties"]["base"] = {
        "type": "string",
        "description": "Another YAML, relative to this one, whose settings this one overrides.",
    }
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_bytes_atomic(SCHEMA_PATH, schema_text().encode())
    sys.stdout.write(f"{SCHEMA_PATH}\n")
