"""Writes text with an exported model, for benches/decode.rs.

    decode.py transformers FOLDER THREADS TOKENS
    decode.py llama.cpp FILE THREADS TOKENS

Says "ready" when the model is loaded; then, for each line "N", has N prompts of 32 tokens continued by TOKENS each, greedily
and all at the same time, and prints the seconds until the first token of one, and the tokens a second of all.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

KIND, MODEL, THREADS, TOKENS = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(THREADS)
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
# With the token that a text begins with, 32.
PROMPT = "a" * 31


def transformers(streams):
    inputs = {"input_ids": torch.full((streams, 32), 97), "attention_mask": torch.ones((streams, 32), dtype=torch.long)}
    inputs["input_ids"][:, 0] = 256
    with torch.inference_mode():
        start = time.perf_counter()
        model.generate(**inputs, do_sample=False, max_new_tokens=1, eos_token_id=-1)
        first = time.perf_counter() - start
        start = time.perf_counter()
        model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS, eos_token_id=-1)
        return first, streams * TOKENS / (time.perf_counter() - start)


servers = {}


def server(streams):
    if streams not in servers:
        params = xllamacpp.CommonParams()
        params.model.path = MODEL
        params.n_gpu_layers = 0
        params.n_parallel = streams
        params.n_ctx = 256 * streams
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        servers[streams] = (xllamacpp.Server(params), ThreadPoolExecutor(streams))
    return servers[streams]


def llama_cpp(streams):
    model, threads = server(streams)

    def write(tokens):
        body = {"prompt": PROMPT, "n_predict": tokens, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True}
        return model.handle_completions({**body, "cache_prompt": False, "timings_per_token": True})

    start = time.perf_counter()
    write(1)
    first = time.perf_counter() - start
    start = time.perf_counter()
    answers = list(threads.map(write, [TOKENS] * streams))
    wall = time.perf_counter() - start
    # Its own clock, where it says what that showed: without the way to it and back.
    own = [a["timings"]["prompt_ms"] + a["timings"]["predicted_ms"] for a in answers if "timings" in a]
    if streams == 1 and own:
        wall = min(wall, own[0] / 1e3)
        first = min(first, answers[0]["timings"]["prompt_ms"] / 1e3)
    return first, streams * TOKENS / wall


if KIND == "transformers":
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    turn = transformers
else:
    import xllamacpp

    turn = llama_cpp
turn(1)
print("ready", file=out, flush=True)
for line in sys.stdin:
    print(*turn(int(line)), file=out, flush=True)
# llama.cpp's servers have threads that nothing ends.
os._exit(0)
