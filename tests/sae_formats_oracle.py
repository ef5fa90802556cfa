"""What SAELens, sparsify, dictionary_learning and others compute from their files, in plain numpy.

Written from the published formulas of each library; all take the tensors as stored, in float64.
"""

import numpy as np


def relu(z):
    return np.maximum(z, 0)


def largest(z, k):
    """The k largest of every row; others are zero."""
    order = np.argsort(-z, axis=1, kind="stable")[:, :k]
    out = np.zeros_like(z)
    np.put_along_axis(out, order, np.take_along_axis(z, order, 1), 1)
    return out


def saelens(cfg, t, x):
    """Codes and reconstructions of SAELens 6 at inference, or of its checkpoints."""
    t = {name: np.asarray(value, np.float64) for name, value in t.items()}
    kind = cfg["architecture"]
    undo = (0.0, 1.0)
    if cfg["normalize_activations"] == "constant_norm_rescale":
        undo = (0.0, np.linalg.norm(x, axis=1, keepdims=True) / x.shape[1] ** 0.5)
        x = x / undo[1]
    elif cfg["normalize_activations"] == "layer_norm":
        undo = (x.mean(axis=1, keepdims=True), x.std(axis=1, keepdims=True, ddof=1))
        x = (x - undo[0]) / (undo[1] + 1e-5)
    x = x - t["b_dec"] * cfg.get("apply_b_dec_to_input", True)
    norms = np.linalg.norm(t["W_dec"], axis=1)
    rescale = norms if cfg.get("rescale_acts_by_decoder_norm") else np.ones_like(norms)
    if kind == "matching_pursuit":
        f, rest = np.zeros((len(x), len(norms))), x.copy()
        rows, done = np.arange(len(x)), np.zeros(len(x), bool)
        for _ in range(cfg["max_iterations"] or x.shape[1]):
            best = (rest @ t["W_dec"].T).argmax(axis=1)
            value = relu((rest * t["W_dec"][best]).sum(axis=1)) * ~done
            before = f != 0
            f[rows, best] += value
            rest = rest - value[:, None] * t["W_dec"][best]
            if cfg["stop_on_duplicate_support"]:
                done |= ((f != 0) == before).all(axis=1)
            done |= np.linalg.norm(rest, axis=1) < cfg["residual_threshold"]
    elif kind == "gated":
        u = x @ t["W_enc"]
        f = (u + t["b_gate"] > 0) * relu(x @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"])
    else:
        z = (x @ t["W_enc"] + t["b_enc"]) * rescale
        if kind == "topk":
            f = relu(largest(z, cfg["k"]))
        elif kind == "jumprelu":
            bars = np.exp(t["log_threshold"]) if "log_threshold" in t else t["threshold"]
            f = relu(z) * (z > bars)
        elif kind in {"batchtopk", "matryoshka_batchtopk"}:  # as saved for inference
            f = relu(z) * (z > t["topk_threshold"])
        else:
            f = relu(z)
    out = (f / rescale * t.get("scaling_factor", 1.0)) @ t["W_dec"] + t["b_dec"]
    return f, out * undo[1] + undo[0]


def sparsify(cfg, t, x):
    t = {name: np.asarray(value, np.float64) for name, value in t.items()}
    f = largest(relu((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]), cfg["k"])
    return f, f @ t["W_dec"] + t["b_dec"]


def dictionary_learning(kind, t, x):
    t = {name: np.asarray(value, np.float64) for name, value in t.items()}
    if kind == "GatedAutoEncoder":
        u = (x - t["decoder_bias"]) @ t["encoder.weight"].T
        f = (u + t["gate_bias"] > 0) * relu(np.exp(t["r_mag"]) * u + t["mag_bias"])
        return f, f @ t["decoder.weight"].T + t["decoder_bias"]
    if kind == "JumpReluAutoEncoder":
        z = x @ t["W_enc"] + t["b_enc"]
        f = relu(z * (z > t["threshold"]))
        return f, f @ t["W_dec"] + t["b_dec"]
    if kind == "MatryoshkaBatchTopKSAE":
        z = relu((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
        f = z * (z > t["threshold"])
        return f, f @ t["W_dec"] + t["b_dec"]
    if kind == "AutoEncoder":
        f = relu((x - t["bias"]) @ t["encoder.weight"].T + t["encoder.bias"])
        return f, f @ t["decoder.weight"].T + t["bias"]
    if kind == "AutoEncoderNew":
        f = relu(x @ t["encoder.weight"].T + t["encoder.bias"])
        return f, f @ t["decoder.weight"].T + t["decoder.bias"]
    z = relu((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"])
    f = largest(z, int(t["k"])) if kind == "AutoEncoderTopK" else z * (z > t["threshold"])
    return f, f @ t["decoder.weight"].T + t["b_dec"]


def openai(state, x):
    t = {name: np.asarray(x, np.float64) for name, x in state.items() if hasattr(x, "shape")}
    topk = state["activation"] == "TopK"
    mean, std = x.mean(axis=1, keepdims=True), x.std(axis=1, keepdims=True, ddof=1)
    if topk:
        x = (x - mean) / (std + 1e-5)
    z = (x - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]
    f = relu(largest(z, state["activation_state_dict"]["k"]) if topk else z)
    out = f @ t.get("decoder.weight", t["encoder.weight"].T).T + t["pre_bias"]
    return f, out * std + mean if topk else out


def gemma_scope(t, x):
    t = {name.lower(): np.asarray(value, np.float64) for name, value in t.items()}
    z = x @ t["w_enc"] + t["b_enc"]
    f = relu(z) * (z > t["threshold"])
    return f, f @ t["w_dec"] + t["b_dec"]
