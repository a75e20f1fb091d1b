"""The parent's side: start, follow, stop and judge the training child."""
