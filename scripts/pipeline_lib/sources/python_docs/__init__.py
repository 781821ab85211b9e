"""The corpus that every machine already has: the documentation inside its own Python installation.

    discovery -> extraction, signatures -> documents          text, one document per module
              -> summaries -> harvest (scratch) -> material   described names, in splits without leaks
              -> chat, preference, domain, choices            training sets and evaluation tasks
    arithmetic                                                generated word problems

Files are read with `ast`; nothing is imported and nothing is executed.
"""
