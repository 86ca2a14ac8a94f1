"""Compares an evaluation with scikit-learn, by hand: python tests/scikit.py DIR, a folder written by evaluate --output-dir.

Needs scikit-learn. Recomputes everything from predictions.jsonl alone, and compares it with metrics.json and
classification_report.txt. Exits with 1 if anything differs by more than 1e-9.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

folder = Path(sys.argv[1])
found = json.loads((folder / "metrics.json").read_text())
rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
names = found["labels"]
classes = len(names)
truth = np.array([names.index(row["label"]) for row in rows])
scores = np.array([[entry["score"] for entry in row["scores"]] for row in rows])
predicted = np.array([names.index(row["predicted"]) for row in rows])
faults = []
checked = 0


def same(what, got, wanted):
    global checked
    checked += 1
    got, wanted = np.asarray(got, float), np.asarray(wanted, float)
    if got.shape != wanted.shape or not np.allclose(got, wanted, rtol=0, atol=1e-9):
        faults.append(f"{what}: {got}, not {wanted}")


same("pred", found["pred"], predicted)
same("argmax", predicted, scores.argmax(1))
same("accuracy", found["accuracy"], sk.accuracy_score(truth, predicted))
same("loss", found["loss"], sk.log_loss(truth, scores, labels=range(classes)))
same("confusion", found["confusion_matrix"], sk.confusion_matrix(truth, predicted, labels=range(classes)))
for average in ["macro", "micro", "weighted"] + ["binary"] * (classes == 2):
    wanted = sk.precision_recall_fscore_support(truth, predicted, labels=range(classes) if average != "binary" else None,
                                                average=average, zero_division=0)
    same(average, [found[average][key] for key in ("precision", "recall", "f1")], wanted[:3])
wanted = sk.precision_recall_fscore_support(truth, predicted, labels=range(classes), zero_division=0)
for key, values in zip(("precision", "recall", "f1", "support"), wanted):
    same(f"per class {key}", found["per_class"][key], values)

same("balanced accuracy", found["balanced_accuracy"], sk.balanced_accuracy_score(truth, predicted))
same("Matthews' correlation", found["matthews_correlation"], sk.matthews_corrcoef(truth, predicted))

areas = []
for key, curve in found["curves"].items():
    score, positive = scores[:, int(key)], truth == int(key)
    if not curve["defined"]:
        same(f"class {key} has one kind of row", len(set(positive)), 1)
        continue
    areas.append((curve["roc_auc"], curve["average_precision"]))
    same(f"area {key}", curve["roc_auc"], sk.roc_auc_score(positive, score))
    same(f"average precision {key}", curve["average_precision"], sk.average_precision_score(positive, score))
    for name, drop in (("roc", False), ("roc_drop_intermediate", True)):
        fpr, tpr, thresholds = sk.roc_curve(positive, score, drop_intermediate=drop)
        same(f"{name} fpr {key}", curve[name]["fpr"], fpr)
        same(f"{name} tpr {key}", curve[name]["tpr"], tpr)
        same(f"{name} thresholds {key}", curve[name]["thresholds"][1:], thresholds[1:])
    precision, recall, thresholds = sk.precision_recall_curve(positive, score)
    for name, values in (("precision", precision), ("recall", recall), ("thresholds", thresholds)):
        same(f"{name} curve {key}", curve["pr"][name], values)
if len(areas) == len(found["curves"]):
    same("mean areas", [found["roc_auc"], found["average_precision"]], np.mean(areas, axis=0))

right, score = (truth == 1, scores[:, 1]) if classes == 2 else (truth == predicted, scores.max(1))
share, mean = calibration_curve(right, score, n_bins=10)
same("calibration, share", [tenth["share"] for tenth in found["calibration"]], share)
same("calibration, score", [tenth["mean_score"] for tenth in found["calibration"]], mean)
same("calibration, rows", sum(tenth["count"] for tenth in found["calibration"]), len(rows))

report = sk.classification_report(truth, predicted, labels=range(classes), target_names=names, digits=4, zero_division=0)
checked += 1
if report != (folder / "classification_report.txt").read_text():
    faults.append("the classification report differs:\n" + report)

print(f"{len(rows)} rows, {classes} classes: {checked} figures and curves compared, {len(faults)} differ")
print("\n".join(faults))
sys.exit(bool(faults))
