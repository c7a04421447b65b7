"""What the makers of models and logits from transformers share."""

import torch
from safetensors.torch import save_file


@torch.no_grad()
def write(folder, models, build, draw):
    """Writes the models of a dict from names to (tokens, the largest file of the folder, settings):
    NAME/ and NAME.expected.safetensors for each, as the scripts describe them.

    build(settings) gives a model; draw(name, parameter) draws a parameter anew, so that none hides
    at the value it starts from.
    """
    for name, (length, shard_size, settings) in models.items():
        torch.manual_seed(1)
        model = build(settings).eval()
        for parameter in model.named_parameters():
            draw(*parameter)
        model.save_pretrained(folder / name, max_shard_size=shard_size)
        (folder / name / "generation_config.json").unlink(missing_ok=True)

        tokens = torch.randint(0, model.config.vocab_size, (length,))
        logits = model(tokens[None], use_cache=False).logits[0]
        save_file({"tokens": tokens.to(torch.int32), "logits": logits.contiguous()},
                  folder / f"{name}.expected.safetensors")
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits from "
              f"{logits.min():.3f} to {logits.max():.3f}, deviation {logits.std():.3f}")
