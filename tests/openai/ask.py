"""Asks a coordinator as OpenAI's own package does: what comes back must be what that package understands.

Prints what all of it cost, in µHYD. Arguments: address, API key, key of an empty wallet, the operator's key.
"""

import sys
import threading

import openai

address, key, poor, operator = sys.argv[1:]
client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
costs = []


def pay(usage):
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    costs.append(int(usage.cost))
    assert costs[-1] == 3 * usage.total_tokens, usage


def refused(status, kind, code, call, param=None):
    try:
        call()
    except openai.APIStatusError as error:
        assert error.status_code == status, error
        assert isinstance(error, kind), type(error)
        assert (error.code, error.param) == (code, param), (error.code, error.param)
        return
    raise AssertionError(f"not refused with {status}")


def complete(client=client, **more):
    arguments = {"model": "hydra", "prompt": "line 1: to be", "max_tokens": 12, "temperature": 0, **more}
    return client.completions.create(**arguments)


def chat(client=client, **more):
    messages = [{"role": "user", "content": "Hello"}]
    arguments = {"model": "hydra", "messages": messages, "max_tokens": 10, "temperature": 0, **more}
    return client.chat.completions.create(**arguments)


# What there is.
models = list(client.models.list())
assert [model.id for model in models] == ["hydra"], models
assert client.models.retrieve("hydra").context_length == 40

# Whole and streamed are the same text.
whole = complete()
pay(whole.usage)
assert whole.object == "text_completion" and whole.id.startswith("cmpl-") and whole._request_id == whole.id
text = whole.choices[0].text
assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 12, whole
chunks = list(complete(stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == text
assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].choices == []
assert all(chunk.usage is None for chunk in chunks[:-1])
pay(chunks[-1].usage)

whole = chat()
pay(whole.usage)
assert whole.choices[0].message.role == "assistant"
chunks = list(chat(stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
assert chunks[0].choices[0].delta.role == "assistant"
pay(chunks[-1].usage)

# Seeds, n, stop, echo, probabilities.
hot = {"temperature": 1, "seed": 7, "n": 3}
first, second = complete(**hot), complete(**hot)
pay(first.usage)
pay(second.usage)
texts = [choice.text for choice in first.choices]
assert texts == [choice.text for choice in second.choices] and len(set(texts)) > 1, texts
assert [choice.index for choice in first.choices] == [0, 1, 2]
stop = text[4:6]
stopped = complete(stop=stop)
pay(stopped.usage)
assert stopped.choices[0].text == text[: text.index(stop)] and stopped.choices[0].finish_reason == "stop"
echo = complete(echo=True)
pay(echo.usage)
assert echo.choices[0].text == "line 1: to be" + text
likely = complete(logprobs=2)
pay(likely.usage)
logprobs = likely.choices[0].logprobs
assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 12
assert all(max(top.values()) == own for top, own in zip(logprobs.top_logprobs, logprobs.token_logprobs))
likely = chat(logprobs=True, top_logprobs=3)
pay(likely.usage)
for token in likely.choices[0].logprobs.content:
    assert token.logprob <= 0 and len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob
narrow = complete(temperature=1, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5,
                  extra_body={"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1})
pay(narrow.usage)

# Every refusal is the exception that the package has for it, and costs nothing.
refused(400, openai.BadRequestError, "context_length_exceeded", lambda: complete(prompt="x" * 99), "prompt")
refused(400, openai.BadRequestError, "unknown_parameter", lambda: complete(extra_body={"no_such": 1}), "no_such")
refused(400, openai.BadRequestError, "invalid_value", lambda: complete(temperature=99), "temperature")
refused(404, openai.NotFoundError, "model_not_found", lambda: complete(model="gpt-4"), "model")
refused(401, openai.AuthenticationError, "invalid_api_key", lambda: complete(client.with_options(api_key="no")))
refused(402, openai.APIStatusError, "insufficient_quota", lambda: complete(client.with_options(api_key=poor)))
refused(413, openai.APIStatusError, "too_large", lambda: complete(prompt="x" * 2_000_000))

# The operator pays nothing.
assert int(complete(client.with_options(api_key=operator)).usage.cost) == 0

# Two hundred at a time: all are answered, and what there is no room for is refused so that clients come back.
answers, full = [], []


def one(number, texts):
    try:
        answer = complete(temperature=1, n=texts, max_tokens=24, seed=number)
        answers.append((number, answer))
    except openai.RateLimitError as error:
        assert error.response.headers["retry-after"] == "1"
        full.append(error)


def many(texts):
    threads = [threading.Thread(target=one, args=(number, texts)) for number in range(200)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]


many(1)
assert len(answers) == 200 and not full, len(answers)
alone = complete(temperature=1, max_tokens=24, seed=5)
pay(alone.usage)
assert alone.choices[0].text == dict(answers)[5].choices[0].text, "it does not matter who else asks"
many(16)
assert len(answers) + len(full) == 400 and full, len(full)
[pay(answer.usage) for _, answer in answers]
pay(complete().usage)

print(sum(costs))
