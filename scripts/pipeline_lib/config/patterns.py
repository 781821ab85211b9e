"""What a text setting may look like: an expression for machines, and the words of an error for people."""

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
SOURCE_NAME = r"^[a-z0-9][a-z0-9_.-]*$"
TASK_NAME = r"^[A-Za-z0-9_-]+$"
HUB_REPOSITORY = r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?$"
HTTP_ADDRESS = r"^https?://[^\s]+$"
SHA256 = r"^[0-9a-fA-F]{64}$"
SLURM_TIME = r"^(\d+-)?\d+(:\d+){0,2}$"

IN_WORDS = {
    RUN_NAME: "a name may hold letters, digits, '.', '_' and '-', and begins with a letter or digit",
    SOURCE_NAME: "a name may hold lower-case letters, digits, '.', '_' and '-', and begins with a letter or digit",
    TASK_NAME: "a name may hold letters, digits, '_' and '-'",
    HUB_REPOSITORY: "a repository is a name or owner/name, of letters, digits, '.', '_' and '-'",
    HTTP_ADDRESS: "an address begins with http:// or https:// and has no spaces",
    SHA256: "a SHA-256 is 64 hexadecimal digits",
    SLURM_TIME: "a time limit is minutes, hours:minutes:seconds, days-hours or days-hours:minutes:seconds",
}
