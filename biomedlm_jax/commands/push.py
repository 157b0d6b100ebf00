"""Upload an export to the Hugging Face Hub.

    biomedlm push --model=release/ --repo=owner/name --dry_run
    biomedlm push --model=release/ --repo=owner/name --private

Compares the directory with its SHA256SUMS and wants a model card with a licence before anything is
sent. --dry_run lists what would be sent, without the network. The token is that of `hf auth login`
or of the environment variable HF_TOKEN, which the Hub's client reads.
"""

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags()
MODEL = "Directory that export-hf wrote, with or without GGUF files beside the weights."
FLAGS.define("model", None, MODEL, required=True)
FLAGS.define("repo", None, "Repository, owner/name; made if it does not exist.", required=True)
FLAGS.define("private", False, "Make a private repository; a new one is public otherwise.")
FLAGS.define("revision", None, "Branch to commit to; made if it does not exist.")
FLAGS.define("dry_run", False, "Check the directory, list the files and their sizes, send none.")


def run(options: Flags) -> None:
    """List the files, and upload them."""
    from biomedlm_jax.interop import hub

    hub.check_repository(options.repo)
    files = hub.upload_plan(options.model)
    for name, size in files.items():
        print(f"{size:>15,} bytes  {name}")
    seen = "private" if options.private else "public if it is new"
    where = f"{options.repo} ({seen}), branch {options.revision or 'main'}"
    total = f"{len(files)} files, {sum(files.values()) / 1e6:,.1f} MB"
    if options.dry_run:
        print(f"nothing was sent; without --dry_run: {total} to {where}")
        return
    print(f"sending {total} to {where}")
    url = hub.push(options.model, options.repo, **options.pick("private", "revision"))
    print(f"wrote {url}")
