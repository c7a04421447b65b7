namespace eyrie {}
