"""What a step costs on hardware that was not there: nothing in this folder is measured."""
