"""Bootstrap confidence intervals and the area under the ROC curve."""
