"""Installs small made-up distributions beside the real ones, the way an installer leaves them on disk."""

from pathlib import Path

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extra}"


def install(site: Path, name: str, files: dict[str, str], version: str = "1.0", extra: str = "") -> None:
    """Write a distribution with these files (path: content) below `site`, with METADATA and RECORD."""
    records = []
    for path, content in files.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, "utf-8")
        records.append(f"{path},,{len(content.encode('utf-8'))}")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA.format(name=name, version=version, extra=extra), "utf-8")
    (info / "RECORD").write_text("\n".join([*records, f"{info.name}/METADATA,,", f"{info.name}/RECORD,,"]), "utf-8")
