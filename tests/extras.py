"""Each extra of the product alone in a fresh environment, from the built wheel, and a script of what it adds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("api", "curator", "sql", "trainer")
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt")

_CORE = """
from curator import Recipe, Store, ingest
import json, pathlib
chat = lambda n: [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n}"}]
rows = [{"messages": chat(n)} for n in range(9)]
pathlib.Path("rows.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
store = Store("store").open()
ingest(store, ["rows.jsonl"], "chats")
assert Recipe.model_validate({"corpus": "chats", "interleave_ratio": 0.5}).pools
"""
_PLOT = """
from pathlib import Path
from curator.query.plots import before_after, save
save(before_after({"narrow": (0.1, 0.9)}, "answers"), Path("plot.png"))
assert Path("plot.png").stat().st_size > 1000
"""
_QUEUE = """
from api.jobs.queue import open_queue
from curator.store.store import Store
queue = open_queue(Store("store").open(), None)
queue.put("mix", "local", "one")
assert queue.take("mix") == ("local", "one")
"""
_AWAY = """
from api.jobs.queue import open_queue
from curator.errors import StoreError
from curator.store.store import Store
try:
    open_queue(Store("store"), "ADDRESS").put("mix", "local", "one")
except StoreError as error:
    print(error)
else:
    raise SystemExit("nothing listens there")
"""
_API = """
import re, subprocess, sys
import httpx
from curator.store.store import Store
Store("store").open()
process = subprocess.Popen([sys.executable, "-I", "-m", "api", "--store", "store", "--port", "0"], stdout=-1, text=True)
try:
    url = re.search(r"http://\\S+", process.stdout.readline()).group()
    assert httpx.get(url + "/healthz", timeout=60).status_code == 200
finally:
    process.terminate()  # by a kill, its own processes would outlive the folder
    process.wait(120)
"""
_SCORE = """
import peft, safetensors, torch
from transformers import AutoConfig, AutoModelForCausalLM
import curator.scoring.engines.torch_engine
config = AutoConfig.for_model("llama", vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                              num_attention_heads=2, num_key_value_heads=2)
model = peft.get_peft_model(AutoModelForCausalLM.from_config(config), peft.LoraConfig(task_type="CAUSAL_LM"))
assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
"""
_AUDIT = """
import curator.audit.models
from curator.audit.texts import language_of
assert language_of("Das ist ein ganz gewöhnlicher Satz in deutscher Sprache, und er ist lang genug.") == "de"
"""
_SIGN = """
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pathlib import Path
from curator.mix.sign import Signer
key = Ed25519PrivateKey.generate()
Path("key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
assert Signer.load(Path("key.pem")).key.public_key() == key.public_key()
"""
_TRAIN = """
import subprocess, sys
import trainer.loop.fit
assert "--mix-id" in subprocess.run([sys.executable, "-I", "-m", "trainer.sft", "--help"], check=True, text=True,
                                    stdout=-1).stdout
"""
_HUB = """
from datasets import Dataset, load_from_disk
chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
Dataset.from_dict({"messages": [chat]}).save_to_disk("set")
from curator import Store, ingest
ingest(Store("store").open(), ["set"], "saved")
assert len(load_from_disk("set")) == 1
"""
_RAY = """
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
assert ray.get(ray.remote(lambda: 2 + 2).remote()) == 4
ray.shutdown()
"""
_S3 = """
import os
os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_ENDPOINT_URL="http://127.0.0.1:9",
                  AWS_MAX_ATTEMPTS="1", AWS_EC2_METADATA_DISABLED="true")
from curator.errors import StoreError
from curator.store.store import Store
try:
    Store("s3://bucket/place").list("")
except StoreError as error:
    assert str(error).startswith("cannot read the root folder in store bucket/place: "), error
else:
    raise SystemExit("nothing listens there")
"""
_DOCS = """
import subprocess, sys
from pathlib import Path
Path("docs").mkdir(exist_ok=True)
Path("docs/index.md").write_text("# A page")
Path("properdocs.yml").write_text("site_name: x\\ntheme: {name: readthedocs}\\n")
subprocess.run([sys.executable, "-I", "-m", "properdocs", "build", "--quiet"], check=True)
assert Path("site/index.html").exists()
"""
_DEMO = """
import gguf
import trainer.experiments.demo
"""
_BENCH = """
import datasets, datasketch, lm_eval
"""
_INSPECT = """
import inspect_ai, openai
import trainer.evaluate.inspect_task
"""

# What an extra adds, as a script; "" is the product without any. `dev` is the environment of these tests, the two vLLM
# extras have one of their own (`make test-vllm`).
ADDS = {
    "": _CORE,
    "plot": _PLOT,
    "api": _API + _QUEUE,
    "sign": _SIGN,
    "s3": _S3,
    "jobs": _QUEUE,
    "redis": _QUEUE + _AWAY.replace("ADDRESS", "redis://127.0.0.1:9/0"),
    "postgresql": _QUEUE + _AWAY.replace("ADDRESS", "postgresql://127.0.0.1:9/x"),
    "hub": _HUB,
    "docs": _DOCS,
    "score": _SCORE,
    "audit": _AUDIT + _SCORE + _QUEUE,
    "train": _TRAIN + _SCORE + _PLOT,
    "demo": _DEMO + _API,
    "ray": _RAY,
    "bench": _BENCH + _SCORE,
    "inspect": _INSPECT,
}
FREE = ("inspect",)  # wants another version of a pinned package


def copy_source(folder: Path) -> Path:
    """What the product is built from, copied into a new folder `source` of `folder`.

    A build in the checkout leaves files there: those of an earlier one would get into the wheel, and two builds at once
    would share them.
    """
    source = folder / "source"
    source.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    return source


def build_wheel(folder: Path) -> Path:
    """The product's wheel, built into a folder."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel", "--no-deps", "-w", str(folder)]
    subprocess.run([*pip, str(copy_source(folder))], check=True)
    (wheel,) = folder.glob("ballast_mix-*.whl")
    return wheel


def install(wheel: Path, extras: str, folder: Path) -> Path:
    """The Python of a new environment in `folder` that holds the wheel with some extras (by comma), and no pip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pins = [] if extras in FREE else ["-c", str(ROOT / "constraints.txt")]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", str(python), "install"]
    wanted = f"{wheel}[{extras}]" if extras else str(wheel)
    subprocess.run([*pip, "--no-compile", *pins, wanted], check=True, env=_environment())
    return python


def run_added(python: Path, extra: str, folder: Path) -> None:
    """Run what an extra adds, and the console command, away from any checkout; raises CalledProcessError."""
    folder.mkdir(exist_ok=True)
    command = [str(python.parent / "ballast"), "--help"]
    subprocess.run(command, cwd=folder, env=_environment(), check=True, stdout=subprocess.DEVNULL)
    subprocess.run([str(python), "-I", "-c", ADDS[extra]], cwd=folder, env=_environment(), check=True)


def _environment() -> dict[str, str]:
    """Without PYTHONPATH: pip would take a checkout in it for the installed product."""
    own = {"HF_HUB_OFFLINE": "1", "BALLAST_PROGRESS": "0"}
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own
