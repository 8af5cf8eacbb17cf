"""Reads an exported model with transformers and with llama.cpp, for tests/formats.rs.

    compare.py HF_FOLDER GGUF_FILE TOKENS SAVED < PROMPTS

PROMPTS is a JSON list of texts. Prints a JSON object: for each program that is there, for each prompt, how many tokens it
is, the TOKENS likeliest tokens that follow one after the other, and the logarithm of each token's probability at each of
them. What transformers saves again goes to the folder SAVED.
"""

import json
import os
import sys

folder, gguf, count, saved = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
prompts = json.load(sys.stdin)
# What is printed is JSON; llama.cpp writes where it likes.
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def with_transformers():
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.model_type == "llama" and model.config.tie_word_embeddings
    answers = []
    for prompt in prompts:
        tokens = tokenizer(prompt, return_tensors="pt").input_ids
        assert tokenizer.decode(tokens[0], skip_special_tokens=True) == prompt
        with torch.no_grad():
            whole = model.generate(tokens, max_new_tokens=count, do_sample=False, eos_token_id=-1)
            logs = model(whole).logits.log_softmax(-1)[0]
        start = tokens.shape[1]
        answers.append(
            {
                "read": start,
                "tokens": whole[0, start:].tolist(),
                "logs": logs[start - 1 : -1].tolist(),
            }
        )
    model.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    return answers


def with_llama_cpp():
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_gpu_layers = 0
    params.n_ctx = 512
    params.n_parallel = 1
    params.warmup = False
    # As everything else is; by default keys and values have half as many bits.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    answers = []
    for prompt in prompts:
        answer = server.handle_completions(
            {"prompt": prompt, "n_predict": count, "samplers": ["top_k"], "top_k": 1, "n_probs": 264, "cache_prompt": False}
        )
        places = answer["choices"][0]["logprobs"]["content"]
        logs = [[None] * 264 for _ in places]
        for row, place in zip(logs, places):
            for token in place["top_logprobs"]:
                row[token["id"]] = token["logprob"]
        tokens = [place["id"] for place in places]
        answers.append({"read": answer["usage"]["prompt_tokens"], "tokens": tokens, "logs": logs})
    return answers


result = {}
for name, package, read in [("transformers", "transformers", with_transformers), ("llama.cpp", "xllamacpp", with_llama_cpp)]:
    try:
        __import__(package)
    except ImportError:
        continue
    result[name] = read()
print(json.dumps(result), file=out, flush=True)
# llama.cpp's server has threads that nothing ends.
os._exit(0)
