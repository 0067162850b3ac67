"""How the pages' code is run on the bundled model: what is replaced, what is made cheap, what is not run, and why.

An entry of SHELL and PYTHON is replaced wherever it occurs in a command or a block; an entry of the other tables must match
a command from its start.
"""

from __future__ import annotations

import maskunet as mu

MODEL, CLIP = str(mu.zoo.path("shapes")), str(mu.zoo.path("shapes-clip"))

#: Shell commands: what a reader would put in.
SHELL = [
    # SynGen and GenEval know the bundled model's prompts and objects by its name.
    (r"(benchmark geneval.*|--syngen.*) path/or/hub-id", r"\1 shapes"),
    (r"path/or/hub-id(.*--syngen)", r"shapes\1"),
    (r"path/or/hub-id", MODEL),
    (r"folder-or-hub-id", "captioned-images"),
    (r"mask_generators.pth adapters.pth --model \S+", "mask_generators.pth adapters.pth --model authors_model"),
    (r"openai/clip-vit-large-patch14", CLIP),
    (r"path/to/clip", CLIP),
    # Rewards that would be downloaded.
    (r"--reward image-reward(?!=)", "--reward shapes"),
    (r"--reward (hpsv2(\.1)?|pick-score|clip-score|aesthetic)(?!=)\b", "--reward shapes-referee"),
    (r"cuda(:\d)?\b", "cpu"),
    (r"--resolution 512", "--resolution 64"),
    (r"--dtype float16", "--dtype float32"),
    (r"--mixed-precision fp16", "--mixed-precision bf16"),
]

#: Python blocks: what a reader would put in.
PYTHON = [
    # Defaults of training, before the data set's name goes.
    (
        r'"folder-or-hub-id", output_dir',
        '"folder-or-hub-id", mu.TrainConfig(max_train_steps=2, train_batch_size=2, validation_samples=2), output_dir',
    ),
    (r"path/or/hub-id", MODEL),
    (r"folder-or-hub-id", "captioned-images"),
    (r"path/to/clip", CLIP),
    (r'load\("image-reward"\)', 'load("shapes")'),
    (r'load\("(hpsv2|hpsv2\.1|pick-score|clip-score|aesthetic)"\)', 'load("shapes-referee")'),
    (r"image-reward, hpsv2", "shapes, shapes-referee"),
    (r"cuda", "cpu"),
    (r"resolution=512", "resolution=64"),
    (r"torch\.b?float16", "torch.float32"),
    # Fewer steps.
    (r'\bpipe\((prompts?|\[.*?\]|".*?")(?!.*num_inference_steps)', r"pipe(\1, num_inference_steps=2"),
    (r"\b(num_inference_steps|max_train_steps|train_batch_size|validation_steps|checkpointing_steps)=\d+", r"\1=2"),
    (r"validation_samples=\d+", "validation_samples=2"),
    (r"SearchConfig\.preset\((.*?)\)", r"SearchConfig.preset(\1, num_inference_steps=2, iterations=1)"),
    (r"SearchConfig\((?=\w)", "SearchConfig(num_inference_steps=2, candidates=2, iterations=1, "),
    (r'(mu\.search\(pipe, \[[^]]*\], "[^"]*")\)', r"\1, mu.SearchConfig(num_inference_steps=2, candidates=2))"),
    (r"TrainConfig\((?=max_train_steps=2, )", "TrainConfig(gradient_accumulation_steps=1, "),
    (r"(mu\.evaluate\(.*?limit=)\d+", r"\g<1>2, images_per_prompt=1, num_inference_steps=1"),
    (r"(syngen\(pipe, \[.*?)\)$", r"\1, num_inference_steps=2)"),
]

#: Flags that are appended, since the last of a flag counts.
CHEAPER = [
    (r"maskunet generate", "--steps 2 --device cpu"),
    (r"maskunet search", "--steps 2 --iterations 1 --device cpu"),
    (r"maskunet search(?!.*--preset)", "--candidates 2"),
    (
        r"maskunet train",
        "--max-train-steps 2 --train-batch-size 2 --gradient-accumulation-steps 1 --max-train-samples 8 --device cpu "
        "--validation-samples 2 --validation-num-inference-steps 2",
    ),
    (
        r"maskunet train.* --objective reward",
        "--reward-batch-size 1 --reward-num-inference-steps 2 --validation-rewards 2",
    ),
    (r"maskunet export", "--device cpu"),
    (r"maskunet export.* --prompts-file", "--steps 2"),
    (r"maskunet evaluate", "--device cpu"),
    (r"maskunet evaluate.* --model", "--steps 1 --limit 6"),
    (r"maskunet benchmark", "--device cpu"),
    (r"maskunet benchmark.* --model", "--steps 1 --images-per-prompt 1 --limit 2"),
    (r"maskunet benchmark.* --sides .*search(?!.*--preset)", "--preset fast"),
    (r"maskunet demo", "--count 6 --steps 2"),
    (r"maskunet zoo sample", "--count 6 --steps 2"),
]

#: Commands whose words are parsed and checked, and which are not run.
PARSED = [
    (r"maskunet zoo train", "hours"),
    (r"maskunet analyze ", "half a minute to two each; run in tests/analysis"),
    (r"maskunet ui\b", "a server, which runs until it is stopped"),
    (r"maskunet benchmark t2i-compbench", "needs spaCy and a download"),
    (r"maskunet .*inception", "needs torchvision and a download"),
    (r"maskunet .*--use-8bit-adam", "needs bitsandbytes, and a GPU for fp16"),
    (r"maskunet .*--protocol coco", "needs COCO's annotations"),
    (r"torchrun ", "several processes, tested in tests/training; the maskunet command in it is parsed"),
    (r"python (-m )?benchmarks[./]", "minutes to hours; its options are looked up"),
    (r"python (docs|examples)/", "run by hand or in tests/examples; its options are looked up"),
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

#: Options in the text that are other programs'.
OTHER_OPTIONS = (
    "--to_safetensors",
    # torchrun's, accelerate's and the authors'.
    "--standalone",
    "--nproc_per_node",
    "--multi_gpu",
    "--num_processes",
    "--captions_file",
    "--world_size",
    "--enable_xformers_memory_efficient_attention",
)
