"""Convex networks in scikit-learn: a pipeline, a grid search, and a certificate of the winner."""

from __future__ import annotations

from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from convexnn_models.estimators import ConvexNNClassifier

X, y = load_wine(return_X_y=True)
X, held_out, y, held_out_y = train_test_split(X, y, random_state=0, stratify=y)

classifier = ConvexNNClassifier(n_gates=30, activation="gated_relu", tol=1e-4)
pipeline = make_pipeline(StandardScaler(), classifier)
search = GridSearchCV(pipeline, {"convexnnclassifier__reg": [0.01, 0.05]}, cv=3)
search.fit(X, y)

best = search.best_estimator_[-1]
print(f"reg = {best.reg}: {best.network_}")
print(best.certificate_)
print(f"held-out accuracy {search.score(held_out, held_out_y):.1%}")
