"""How the pages' code is run on the bundled model: what is replaced, what is made cheap, what is not run, and why.

An entry of SHELL and PYTHON is replaced wherever it occurs in a command or a block; one of the other tables has to match a
command from its start.
"""

from __future__ import annotations

import maskunet as mu

MODEL, CLIP = str(mu.zoo.path("shapes")), str(mu.zoo.path("shapes-clip"))

#: What a reader would put in, in shell commands.
SHELL = [
    # SynGen and GenEval know the bundled model's prompts and objects by its name.
    (r"(--benchmark geneval.*) path/or/hub-id", r"\1 shapes"),
    (r"path/or/hub-id", MODEL),
    (r"folder-or-hub-id", "captioned-pictures"),
    (r"mask_generators.pth adapters.pth --model \S+", "mask_generators.pth adapters.pth --model authors_model"),
    (r"openai/clip-vit-large-patch14", CLIP),
    (r"path/to/clip", CLIP),
    # Rewards that would be downloaded.
    (r"--reward image-reward(?!=)", "--reward shapes"),
    (r"--reward (hpsv2(\.1)?|pick-score|clip-score|aesthetic)(?!=)\b", "--reward shapes-referee"),
    (r"cuda(:\d)?\b", "cpu"),
    (r"--resolution 512", "--resolution 64"),
    (r"--dtype float16", "--dtype float32"),
    (r"--mixed_precision fp16", "--mixed_precision bf16"),
]

#: What a reader would put in, in Python.
PYTHON = [
    (r"path/or/hub-id", MODEL),
    (r"folder-or-hub-id", "captioned-pictures"),
    (r"path/to/clip", CLIP),
    (r'load\("image-reward"\)', 'load("shapes")'),
    (r'load\("(hpsv2|hpsv2\.1|pick-score|clip-score|aesthetic)"\)', 'load("shapes-referee")'),
    (r"cuda", "cpu"),
    (r"resolution=512", "resolution=64"),
    (r"torch\.float16", "torch.float32"),
    # Fewer steps.
    (r'\bpipe\((prompts?|\[.*?\]|".*?")(?!.*num_inference_steps)', r"pipe(\1, num_inference_steps=2"),
    (r"(num_inference_steps|max_train_steps|train_batch_size|validation_steps|checkpointing_steps)=\d+", r"\1=2"),
    (r"validation_samples=\d+", "validation_samples=4"),
    (r"SearchConfig\.preset\((.*?)\)", r"SearchConfig.preset(\1, num_inference_steps=2, iterations=1)"),
]

#: Flags that are appended, since the last of a flag counts.
CHEAPER = [
    (r"maskunet generate", "--steps 2 --device cpu"),
    (r"maskunet search", "--steps 2 --iterations 1 --device cpu"),
    (
        r"maskunet train",
        "--max_train_steps 2 --train_batch_size 2 --gradient_accumulation_steps 1 --max_train_samples 8 --device cpu",
    ),
    (r"maskunet train", "--validation_samples 2 --validation_num_inference_steps 2"),
    (r"maskunet train.* --objective reward", "--reward_batch_size 1 --reward_num_inference_steps 2"),
    (r"maskunet train.* --objective reward", "--validation_rewards 2"),
    (r"maskunet evaluate", "--device cpu"),
    (r"maskunet evaluate.* --model", "--steps 1 --limit 6"),
    (r"maskunet evaluate.* --benchmark.* --model", "--samples 1 --limit 2"),
    (r"maskunet evaluate.* --sides .*search", "--preset fast"),
    (r"maskunet demo", "--count 6 --steps 2"),
    (r"maskunet zoo sample", "--count 6 --steps 2"),
]

#: Commands whose words are parsed and checked, and which are not run.
PARSED = [
    (r"maskunet reproduce ", "hours"),
    (r"maskunet zoo train", "hours"),
    (r"maskunet analyze ", "half a minute to two each; run in tests/analysis"),
    (r"maskunet ui\b", "a server, which runs until it is stopped"),
    (r"maskunet .*--benchmark t2i-compbench", "needs spaCy and a download"),
    (r"maskunet .*inception", "needs torchvision and a download"),
    (r"maskunet .*--use_8bit_adam", "needs bitsandbytes, and a GPU for fp16"),
    (r"maskunet .*--report_to", "needs a tracker"),
    (r"maskunet .*--hub_model_id", "needs a hub account"),
    (r"maskunet .*--protocol coco", "needs COCO's annotations"),
    (r"torchrun ", "several processes, tested in tests/training; the maskunet command in it is parsed"),
    (r"python benchmarks/", "minutes to hours; its --help is run, and its flags are looked up there"),
    (r"python docs/", "writes into docs/; its --help is run"),
    (r"make ", "makes a virtual environment; its target is looked up in the Makefile"),
]

#: Commands that nothing is checked of.
NOT_RUN = [
    (r"git clone ", "network"),
    (r"cd ", "a folder of the reader's"),
    (r"(\S*python -m )?(\S*/)?pip install ", "network"),
    (r"python -m spacy download ", "network"),
    (r"hf download ", "network"),
    (r"export [A-Z_0-9]+=\S*$", "sets a variable of the reader's shell"),
    (r"\S*pre-commit install", "changes the repository"),
]

#: Python blocks that are compiled and not run, by a text in them.
COMPILED: list[tuple[str, str]] = []


#: Options in the text that are other programs'.
OTHER_OPTIONS = ("--to_safetensors",)

#: Words of the form maskunet.x that are no names of Python.
FILES: tuple[str, ...] = ()
