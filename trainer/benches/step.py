"""A step of pretraining as one would write it with torch and transformers; asked by step.rs, line by line."""

import sys
import time

import torch
import transformers


class Masked(torch.nn.Module):
    """BERT with a head that fills in the masked tokens alone."""

    def __init__(self, layers, hidden, heads, vocabulary, length):
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            max_position_embeddings=length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
        self.bert = transformers.BertModel(config, add_pooling_layer=False)
        self.dense = torch.nn.Linear(hidden, hidden)
        self.norm = torch.nn.LayerNorm(hidden, eps=1e-12)
        self.bias = torch.nn.Parameter(torch.zeros(vocabulary))

    def forward(self, ids, rows, originals):
        states = self.bert(ids).last_hidden_state
        states = states.reshape(-1, states.shape[-1]).index_select(0, rows)
        states = self.norm(torch.nn.functional.gelu(self.dense(states)))
        logits = torch.nn.functional.linear(states, self.bert.embeddings.word_embeddings.weight, self.bias)
        return torch.nn.functional.cross_entropy(logits, originals)


def prepare(layers, hidden, heads, vocabulary, sequences, length, masked):
    model = Masked(layers, hidden, heads, vocabulary, length).train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, eps=1e-6, fused=True)
    tokens = torch.arange(sequences * length)
    rows = tokens[::masked]
    batch = (tokens * 31 % vocabulary).view(sequences, length), rows, rows * 31 % vocabulary
    return model, optimizer, batch


def step(model, optimizer, batch):
    optimizer.zero_grad(set_to_none=True)
    loss = model(*batch)
    loss.item()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def main():
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    subject = None
    for line in sys.stdin:
        command, *numbers = line.split()
        if command == "model":
            subject = prepare(*map(int, numbers))
            print("ready", flush=True)
            continue
        start = time.perf_counter()
        for _ in range(int(numbers[0])):
            step(*subject)
        print((time.perf_counter() - start) / int(numbers[0]), flush=True)


main()
